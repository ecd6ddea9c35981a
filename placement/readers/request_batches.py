"""Batches of one request, from an array [tokens, layers, top-k] of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.errors import TraceError
from placement.readers.base import Batch
from placement.readers.token_ids import TokenIds
from placement.traces.format import DECODE, DRAFT, PREFILL, RequestEntry

LAST_POSITION = 2**31 - 1
LARGEST_WEIGHT = 65504.0  # of float16


def request_batches(
    where: str,
    name: str,
    chunks: Iterable[npt.NDArray[Any]],
    *,
    prompt_tokens: int | None,
    start: int = 0,
    tokens: int | None = None,
    ids: TokenIds | None = None,
) -> Iterator[Batch]:
    """`chunks` [T, L, K] of whole numbers follow each other from position `start` on.

    Tokens from position `prompt_tokens` on are decode tokens; of a prompt of unknown length all are prefill. Of
    a request of so many `tokens`, rows from that position on are drafts; `ids` of its tokens go with the rows. Raises
    TraceError on positions beyond int32.
    """
    entry = (RequestEntry(id=name),)
    prompt_P = None if ids is None else ids.prompt_P
    for ids_TLK in chunks:
        if start + len(ids_TLK) > LAST_POSITION:
            raise TraceError(
                f"{where} has tokens at position {start} and up; up to {LAST_POSITION} is allowed; is it cut?"
            )
        position_T = np.arange(start, start + len(ids_TLK), dtype=np.int32)
        phase_T = np.full(len(ids_TLK), PREFILL, dtype=np.uint8)
        if prompt_tokens is not None:
            phase_T[position_T >= prompt_tokens] = DECODE
        if tokens is not None:
            phase_T[position_T >= tokens] = DRAFT
        yield Batch(
            where=where,
            ids_LTK=layers_first(ids_TLK),
            requests=entry,
            request_T=np.zeros(len(ids_TLK), dtype=np.int32),
            position_T=position_T,
            phase_T=phase_T,
            token_T=None if ids is None else ids.at(position_T),
            prompt_P=prompt_P,
        )
        start, prompt_P = start + len(ids_TLK), None


def whole_column(found: npt.NDArray[Any], name: str, most: int) -> npt.NDArray[np.int32]:
    """A column [T] of whole numbers from 0 to `most`. Raises ValueError."""
    if found.dtype.kind not in "iu":
        raise ValueError(f"{name} has dtype {found.dtype}; whole numbers are needed")
    if found.size and not 0 <= found.min() <= found.max() <= most:
        raise ValueError(
            f"{name} has {found.dtype} from {found.min()} to {found.max()}; whole numbers to {most} are allowed"
        )
    return found.astype(np.int32)


def half_weights(weights_TLK: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    """Router weights as [L, T, K] float16. Raises ValueError on what no router gives: none, or beyond float16."""
    if not (np.abs(weights_TLK) <= LARGEST_WEIGHT).all():
        raise ValueError(f"router weights must be numbers from {-LARGEST_WEIGHT:.0f} to {LARGEST_WEIGHT:.0f}")
    return weights_TLK.transpose(1, 0, 2).astype(np.float16)


def layers_first(ids_TLK: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """[L, T, K] int32, C-contiguous; ids beyond int32 become the largest that it has, which no model has."""
    if ids_TLK.dtype.itemsize >= 4 and ids_TLK.size:
        ids_TLK = np.clip(ids_TLK, -(2**31), 2**31 - 1)
    return np.ascontiguousarray(ids_TLK.transpose(1, 0, 2), dtype=np.int32)
