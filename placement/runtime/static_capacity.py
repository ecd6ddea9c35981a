"""Capacity in fixed shapes: candidates of all ranks go to all ranks, and each decides for itself, without the host."""

from __future__ import annotations

import torch
from torch import Tensor

from placement.errors import OptionError
from placement.runtime.capacity import EXPANDED, LOAD_UNIT, NONE, CapacityPolicy, limit_of
from placement.runtime.decision import Asked, RankCapacity
from placement.runtime.layer_map import LayerMap
from placement.runtime.transport.base import Group


class StaticCapacity(RankCapacity):
    """The same decisions as `RankCapacity`. With scope `global` they take one exchange: 24 bytes a candidate that every
    rank sends to every rank, blank ones included.

    Args:
        tokens: Most tokens of a rank.
        top_k: Assignments of a token.
    """

    _rows_seen: Tensor

    def __init__(
        self,
        policy: CapacityPolicy,
        layer_map: LayerMap,
        world: Group,
        device: torch.device,
        *,
        tokens: int,
        top_k: int,
    ) -> None:
        if policy.classes:
            raise OptionError(
                "classes are told by marks, which change from call to call and are not seen in a graph: give a policy "
                "without classes, or graph=False"
            )
        super().__init__(policy, layer_map, world)
        self._tokens, self._top_k = tokens, top_k
        self._rows_seen = torch.zeros((), dtype=torch.int64, device=device)

    def use(self, layer_map: LayerMap) -> None:
        """Decide by another map, as from the start; its table is written where a captured graph reads it."""
        self._map, self._own_logical = layer_map, [layer_map.logical_P[p] for p in self._own]
        self._tables(self._rows_seen.device).own_logical.copy_(torch.tensor(self._own_logical))
        self._rows_seen.zero_()

    @property
    def width(self) -> int:
        """Assignments of a token, further ones included."""
        if self.policy.mode != EXPANDED:
            return self._top_k
        most = self.policy.max_extra
        return self._top_k + (len(self._own) if most is None else min(most, len(self._own)))

    def rows_per_slot(self) -> int:
        """Most assignments that a slot serves in a step, if a token asks at most once for each slot."""
        ranks = self._map.num_ranks
        everything, policy = self._tokens * ranks, self.policy
        if policy.mode == NONE or policy.spare_decode:
            return everything
        sources = 1 if policy.scope == "global" else ranks  # each of which has a limit of its own
        limited = everything // sources
        limit = limit_of(limited * self._top_k * LOAD_UNIT, self._shares[0]) // LOAD_UNIT
        return sources * min(limited, max(limit, policy.min_tokens - 1))

    def _of_all(self, asked: Asked, limited: int, fault: Tensor | int) -> tuple[Tensor, Tensor | int]:
        """As on the host; every rank comes to the same decision on the candidates of all, and keeps to its own part."""
        slots, size = asked.slots, self._map.num_ranks
        mine = slots.new_full((self._tokens * self.width + 1, 3), -1)  # blank candidates want slot -1
        if limited:
            mine[: slots.numel()] = torch.stack([asked.key, slots, asked.load], dim=2).view(-1, 3)
        mine[-1] = limited
        got = self._world.all_to_all(mine.repeat(size, 1)).view(size, -1, 3)
        key, slot, load = (one.contiguous() for one in got[:, :-1].reshape(-1, 3).unbind(dim=1))
        in_sets = (slot >= 0).view(size, self._tokens, -1)[:, :, : self._top_k]
        routed = (load.view(size, self._tokens, -1)[:, :, : self._top_k] * in_sets).sum()
        kept = self._admit(key, slot, load, routed[None]) & (slot >= 0)
        kept = kept.view(size, -1)[self._world.rank, : slots.numel()].view(slots.shape)
        if not limited:
            return asked.unlimited(), fault
        return torch.where(got[:, -1, 0].sum() < max(self.policy.min_tokens, 1), asked.unlimited(), kept), fault
