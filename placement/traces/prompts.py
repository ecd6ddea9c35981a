"""Tokens of requests as ids: content, which a trace holds only where somebody asked for it.

Shards say the ids of the tokens that were routed in the column `token`. Prompts that no engine routed while it was
recorded are in `prompts.safetensors` beside the shards, which is optional:

    token    int32 [P]   the prompts, one after another
    length   int32 [Q]   tokens of the prompt of each request that `trace.json` lists; 0: it is not known
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from placement.errors import TraceError
from placement.support.tensor_file import read_header, write_tensors
from placement.traces.format import DRAFT, PREFILL, SCHEMA, TOKEN
from placement.traces.storage.stored_path import StoredPath
from placement.traces.trace import Trace

PROMPTS, LENGTH = "prompts.safetensors", "length"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLists:
    """Tokens of each request, one after another: request q has `token_P[begin_Q[q] : begin_Q[q + 1]]`.

    token_P  int32 [P]
    begin_Q  int64 [Q + 1]
    """

    token_P: npt.NDArray[np.int32]
    begin_Q: npt.NDArray[np.int64]

    @staticmethod
    def of(token_P: npt.NDArray[np.int32], length_Q: npt.NDArray[np.integer]) -> TokenLists:
        """From the lengths of the lists."""
        return TokenLists(token_P=token_P, begin_Q=np.concatenate([[0], np.cumsum(length_Q, dtype=np.int64)]))

    @property
    def length_Q(self) -> npt.NDArray[np.int64]:
        return np.diff(self.begin_Q)

    def list_of(self, request: int) -> npt.NDArray[np.int32]:
        """The tokens of a request, int32."""
        return self.token_P[self.begin_Q[request] : self.begin_Q[request + 1]]

    def take(self, order_R: npt.NDArray[np.integer]) -> TokenLists:
        """The lists of these requests; -1 stands for an empty one."""
        lists = [self.list_of(q) for q in order_R.tolist() if q >= 0]
        length_R = np.where(order_R >= 0, self.length_Q[order_R], 0) if len(self.length_Q) else np.zeros(len(order_R))
        return TokenLists.of(np.concatenate([*lists, np.empty(0, np.int32)]), length_R.astype(np.int64))


def prompts_of(trace: Trace) -> TokenLists:
    """The prompt of every entry of the trace's requests, empty where nothing says it.

    From `prompts.safetensors`; else from the kept rows of the prefill. Raises TraceError on a file that is damaged.
    """
    stored, routed = stored_prompts(trace), tokens_of(trace, prefill=True)
    if stored is None:
        return routed
    both = TokenLists.of(
        np.concatenate([stored.token_P, routed.token_P]), np.concatenate([stored.length_Q, routed.length_Q])
    )
    number_Q = np.arange(len(trace.requests))
    return both.take(np.where(stored.length_Q > 0, number_Q, number_Q + len(number_Q)))


def stored_prompts(trace: Trace) -> TokenLists | None:
    """What `prompts.safetensors` of the trace's folders say, of all entries; None where no folder has one."""
    folders = {span.offset: span for span in trace.spans}
    found, lists = False, []
    length_Q = np.zeros(len(trace.requests), dtype=np.int64)
    for offset, span in sorted(folders.items()):
        path = span.shard.path.parent / PROMPTS
        if not path.exists():
            continue
        found = True
        token_P, length_R = _read(path, span.listed)
        lists.append(token_P)
        length_Q[offset : offset + span.listed] = length_R
    return TokenLists.of(np.concatenate(lists), length_Q) if found else None


def tokens_of(trace: Trace, *, prefill: bool) -> TokenLists:
    """The known tokens of the prefill, or of the decode, of every entry, in the order of their positions.

    Of the kept rows of shards that have the column `token`; rejected drafts are no tokens of an answer.
    """
    parts: list[tuple[npt.NDArray[np.int32], ...]] = []
    for block in trace.blocks():
        if block.shard.has_tokens:
            phase_T, token_T = block.column_T("phase"), block.column_T(TOKEN)
            mine_T = ((phase_T == PREFILL) == prefill) & (phase_T != DRAFT) & (token_T >= 0)
            parts.append((block.request_T[mine_T], block.column_T("position")[mine_T], token_T[mine_T]))
    empty = np.empty(0, dtype=np.int32)
    request_P, position_P, token_P = (np.concatenate(column) for column in zip(*parts, (empty,) * 3, strict=True))
    order = np.lexsort((position_P, request_P))
    return TokenLists.of(token_P[order], np.bincount(request_P, minlength=len(trace.requests)))


def write_prompts(folder: Path, prompts: TokenLists) -> None:
    """Write `prompts.safetensors` for the requests that `trace.json` of the folder lists."""
    tensors = {TOKEN: prompts.token_P.astype(np.int32), LENGTH: prompts.length_Q.astype(np.int32)}
    write_tensors(folder / PROMPTS, tensors, metadata={"schema": SCHEMA})


def _read(path: Path | StoredPath, listed: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Raises TraceError."""
    try:
        content = path.read_bytes()
        header = read_header(lambda start, stop: content[start:stop], len(content))
    except (OSError, ValueError) as error:
        told = getattr(error, "strerror", None) or f"it {error}"
        raise TraceError(f"{path} is truncated or not a safetensors file ({told}); write the trace again") from None
    columns = {}
    for one in header.tensors:
        if one.name in (TOKEN, LENGTH) and one.dtype == "I32" and len(one.shape) == 1:
            columns[one.name] = np.frombuffer(content, "<i4", one.shape[0], header.data_begin + one.begin)
    if len(columns) < 2:
        raise TraceError(f"{path} needs the tensors {TOKEN!r} and {LENGTH!r} of dtype I32 and one axis")
    token_P, length_Q = columns[TOKEN], columns[LENGTH]
    if len(length_Q) != listed or length_Q.min(initial=0) < 0 or int(length_Q.sum(dtype=np.int64)) != len(token_P):
        raise TraceError(
            f"{path}: {LENGTH!r} has {len(length_Q)} numbers that add up to {int(length_Q.sum(dtype=np.int64))}; "
            f"one for each of {listed} requests of trace.json is needed, {len(token_P)} in all; write the trace again"
        )
    return token_P.astype(np.int32), length_Q.astype(np.int32)
