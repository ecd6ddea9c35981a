"""What the routers chose, kept on its device for a few forwards and then moved off it at once (needs torch)."""

from __future__ import annotations

import numpy as np
import torch

from placement.errors import TraceError
from placement.traces.format import id_dtype
from placement.traces.recording.recorded_batch import Fed
from placement.traces.storage.shard_writer import TokenPiece

Chosen = tuple[torch.Tensor, torch.Tensor]  # ids and weights of a layer, [T, K]

MOST_FORWARDS = 64
MOST_TOKENS = 4096


class RoutingBuffer:
    """Forwards that were not written yet: a decoded token alone is too little work for each call of torch."""

    __slots__ = ("_chosen", "_fed", "_ids", "_most_tokens", "_num_experts", "_says_ids", "_tokens", "_weights")

    def __init__(self, num_experts: int, *, weights: bool, ids: bool = False, most_tokens: int = MOST_TOKENS) -> None:
        self._num_experts, self._weights = num_experts, weights
        self._most_tokens = min(most_tokens, MOST_TOKENS)
        self._tokens = 0
        self._chosen: list[list[Chosen]] = []
        self._fed: list[Fed] = []
        self._says_ids = ids
        self._ids: list[torch.Tensor] = []

    def add(self, chosen_L: list[Chosen], fed: Fed, ids: torch.Tensor | None) -> bool:
        """Keep one forward, and the ids of its tokens where they are asked for; True if it is time to `drain`."""
        if self._says_ids:
            unknown = torch.full((len(fed.kept_T),), -1, dtype=torch.int32)
            self._ids.append(unknown if ids is None else ids.detach().reshape(-1).to(torch.int32))
        self._chosen.append(chosen_L)
        self._fed.append(fed)
        self._tokens += len(fed.kept_T)
        return len(self._fed) >= MOST_FORWARDS or self._tokens >= self._most_tokens

    def drain(self) -> TokenPiece | None:
        """The tokens of all forwards kept so far, which are then forgotten. Raises TraceError on ids out of range."""
        if not self._fed:
            return None
        chosen, fed = self._chosen, self._fed
        self._chosen, self._fed, self._tokens = [], [], 0
        with torch.no_grad():
            ids_LTK = torch.stack([torch.cat([ids for ids, _ in layer]) for layer in zip(*chosen, strict=True)])
            found = ids_LTK.cpu().numpy()
            weights = None
            if self._weights:
                weights_LTK = torch.stack([torch.cat([w for _, w in layer]) for layer in zip(*chosen, strict=True)])
                weights = weights_LTK.to(torch.float16).cpu().numpy()
        low, high = int(found.min()), int(found.max())
        if low < 0 or high >= self._num_experts:
            raise TraceError(f"experts {low} to {high} were chosen; 0 to {self._num_experts - 1} are allowed")
        kept_T = np.concatenate([one.kept_T for one in fed])
        ids, self._ids = self._ids, []
        if not kept_T.all():
            found = found[:, kept_T]
            weights = None if weights is None else weights[:, kept_T]
        return TokenPiece(
            ids_LTK=found.astype(id_dtype(self._num_experts)),
            weights_LTK=weights,
            request_T=np.concatenate([one.request_T for one in fed]),
            token_T=torch.cat([one.cpu() for one in ids]).numpy()[kept_T] if self._says_ids else None,
            position_T=np.concatenate([one.position_T for one in fed]),
            phase_T=np.repeat([one.phase for one in fed], [len(one.request_T) for one in fed]).astype(np.uint8),
        )
