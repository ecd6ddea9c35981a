"""Shards written as tokens come: memory for one shard, however long the trace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.model import Model
from placement.traces.format import SHARD_TOKENS, id_dtype, is_short, write_shard


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPiece:
    """Tokens to write, any number: `ids_LTK` of an `id_dtype`, `weights_LTK` float16 or None, three columns [T].

    token_T  int32 [T], the ids of the tokens, -1 where they are not known; None: none is known
    """

    ids_LTK: npt.NDArray[Any]
    request_T: npt.NDArray[Any]
    position_T: npt.NDArray[Any]
    phase_T: npt.NDArray[Any]
    token_T: npt.NDArray[Any] | None = None
    weights_LTK: npt.NDArray[Any] | None = None


class ShardWriter:
    """Collects pieces in the existing `folder` and writes a shard whenever `shard_tokens` have come together.

    model         whose routing it is
    num_tokens    tokens in the shards written so far
    num_requests  1 + the largest request index among them
    """

    def __init__(self, folder: Path, model: Model, *, shard_tokens: int = SHARD_TOKENS) -> None:
        self.num_tokens = self.num_requests = 0
        self._folder = folder
        self.model = model
        self._shard_tokens = shard_tokens
        self._shards = self._filled = 0
        self._buffer: TokenPiece | None = None

    def add(self, piece: TokenPiece) -> bool:
        """Take all tokens of `piece`; True if a shard was written.

        The first piece says whether weights are kept. From the first piece whose sets may be short on, shards are those
        of short sets; from the first that says ids of tokens on, shards say them.
        """
        total, done, before = len(piece.request_T), 0, self._shards
        old = self._buffer
        short = is_short(piece.ids_LTK) or (old is not None and is_short(old.ids_LTK))
        tokens = piece.token_T is not None or (old is not None and old.token_T is not None)
        if old is None or (short, tokens) != (is_short(old.ids_LTK), old.token_T is not None):
            self.flush()
            weights = (piece if old is None else old).weights_LTK is not None
            self._buffer = _empty(self.model, self._shard_tokens, weights=weights, short=short, tokens=tokens)
        assert self._buffer is not None
        while done < total:
            size = min(total - done, self._shard_tokens - self._filled)
            _copy(piece, self._buffer, done, self._filled, size)
            done, self._filled = done + size, self._filled + size
            if self._filled == self._shard_tokens:
                self.flush()
        return self._shards > before

    def flush(self) -> None:
        """Write what has come together, if anything, as a shard of its own."""
        if self._buffer is None or not self._filled:
            return
        buffer, size = self._buffer, self._filled
        write_shard(
            self._folder / f"shard-{self._shards:05d}.safetensors",
            ids_LTK=buffer.ids_LTK[:, :size],
            weights_LTK=None if buffer.weights_LTK is None else buffer.weights_LTK[:, :size],
            request_T=buffer.request_T[:size],
            position_T=buffer.position_T[:size],
            phase_T=buffer.phase_T[:size],
            token_T=None if buffer.token_T is None else buffer.token_T[:size],
        )
        self.num_tokens += size
        self.num_requests = max(self.num_requests, int(buffer.request_T[:size].max()) + 1)
        self._shards, self._filled = self._shards + 1, 0


def _empty(model: Model, size: int, *, weights: bool, short: bool, tokens: bool) -> TokenPiece:
    shape = (model.num_layers, size, model.top_k)
    return TokenPiece(
        ids_LTK=np.empty(shape, dtype=id_dtype(model.num_experts, short=short)),
        weights_LTK=np.empty(shape, dtype=np.float16) if weights else None,
        request_T=np.empty(size, dtype=np.int32),
        position_T=np.empty(size, dtype=np.int32),
        phase_T=np.empty(size, dtype=np.uint8),
        token_T=np.empty(size, dtype=np.int32) if tokens else None,
    )


def _copy(source: TokenPiece, target: TokenPiece, start: int, at: int, size: int) -> None:
    target.ids_LTK[:, at : at + size] = source.ids_LTK[:, start : start + size]
    target.request_T[at : at + size] = source.request_T[start : start + size]
    target.position_T[at : at + size] = source.position_T[start : start + size]
    target.phase_T[at : at + size] = source.phase_T[start : start + size]
    if target.token_T is not None:
        target.token_T[at : at + size] = -1 if source.token_T is None else source.token_T[start : start + size]
    if target.weights_LTK is not None and source.weights_LTK is not None:
        target.weights_LTK[:, at : at + size] = source.weights_LTK[:, start : start + size]
