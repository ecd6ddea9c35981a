"""Trace -> Workload in one pass, layer by layer within each block of tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.errors import OptionError, TraceError
from placement.mixing import GOLDEN, mix
from placement.model import Model
from placement.parallel import run_tasks
from placement.traces import counting
from placement.traces.trace import Block, Trace
from placement.workload import PROFILE_REQUESTS, SAMPLE_TOKENS, Workload

_FAULTS = {
    counting.ID_OUT_OF_RANGE: "has expert id {ids}, which is out of range; ids from 0 to {last} are allowed",
    counting.DUPLICATE_ID: "has top-k set {ids}, which names an expert twice; the ids of a set must differ",
}


def count(
    trace: Trace,
    *,
    seed: int = 0,
    sample_tokens: int = SAMPLE_TOKENS,
    profile_requests: int = PROFILE_REQUESTS,
    executor: Executor | None = None,
    progress: Callable[[int], None] | None = None,
) -> Workload:
    """Count the kept tokens of `trace`; the answer does not depend on the executor.

    progress is called with the number of tokens of each block that was counted. Raises TraceError on expert ids that
    are out of range or repeated in a top-k set, and on a trace without tokens.
    """
    if not -(2**63) <= seed < 2**63:
        raise OptionError(f"seed={seed} must fit 64 bits")
    model = trace.model
    owner_Q = request_keys([request.id for request in trace.requests], seed)
    key_S, block_S, row_S, owner_S = _choose_sample(trace, owner_Q, sample_tokens)
    kept_Q = np.unique(owner_Q[_present(trace)])[:profile_requests]
    profile_row_Q = np.searchsorted(kept_Q, owner_Q).astype(np.int32)
    profile_row_Q[~np.isin(owner_Q, kept_Q)] = -1

    shape = (model.num_layers, model.num_experts)
    load_LE = np.zeros(shape, dtype=np.int64)
    coact_LEE = np.zeros((*shape, model.num_experts), dtype=np.int64)
    profile_LQE = np.zeros((model.num_layers, len(kept_Q), model.num_experts), dtype=np.uint32)
    ids_type = np.uint8 if model.num_experts <= 256 else np.uint16
    sample_SLK = np.empty((len(key_S), model.num_layers, model.top_k), dtype=ids_type)
    num_tokens = 0
    for number, block in enumerate(trace.blocks()):
        chosen = np.flatnonzero(block_S == number)
        rows = row_S[chosen]
        profile_row_T = profile_row_Q[block.request_T]

        def count_one(
            layer: int,
            block: Block = block,
            chosen: npt.NDArray[Any] = chosen,
            rows: npt.NDArray[Any] = rows,
            profile_row_T: npt.NDArray[np.int32] = profile_row_T,
        ) -> None:
            ids_TK = block.ids_TK(layer)
            fault, row = counting.count_sets(ids_TK, profile_row_T, coact_LEE[layer], profile_LQE[layer])
            if fault != counting.OK:
                raise fault_error(model, block, layer, ids_TK, fault, row)
            counting.count_load(ids_TK.reshape(-1), load_LE[layer])
            sample_SLK[chosen, layer] = ids_TK[rows]

        run_tasks(count_one, range(model.num_layers), executor)
        num_tokens += len(block.request_T)
        if progress is not None:
            progress(len(block.request_T))
    coact_LEE += coact_LEE.transpose(0, 2, 1)
    return Workload(
        model=model,
        num_tokens=num_tokens,
        seed=seed,
        sample_tokens=sample_tokens,
        profile_requests=profile_requests,
        load_LE=load_LE,
        coact_LEE=coact_LEE,
        sample_key_S=key_S,
        sample_owner_S=owner_S,
        sample_ids_SLK=sample_SLK,
        profile_key_Q=kept_Q,
        profile_QLE=np.ascontiguousarray(profile_LQE.transpose(1, 0, 2)),
    )


def checked_ids(model: Model, block: Block, layer: int) -> npt.NDArray[Any]:
    """`block.ids_TK(layer)`, or TraceError if an id is out of range or twice in a top-k set."""
    ids_TK = block.ids_TK(layer)
    fault, row = counting.check_ids(ids_TK, model.num_experts)
    if fault != counting.OK:
        raise fault_error(model, block, layer, ids_TK, fault, row)
    return ids_TK


def fault_error(model: Model, block: Block, layer: int, ids_TK: npt.NDArray[Any], fault: int, row: int) -> TraceError:
    """The error for a fault that a kernel of `counting` found in row `row` of a block."""
    told = _FAULTS[fault].format(ids=ids_TK[row].tolist(), last=model.num_experts - 1)
    where = row if block.rows_T is None else int(block.rows_T[row])
    return TraceError(
        f"{block.shard.path}: layer {model.layer_ids[layer]}, token {block.start + where} {told}; write the shard again"
    )


def request_keys(ids: list[str], seed: int) -> npt.NDArray[np.uint64]:
    """A uniform 64-bit key of every request, uint64 [Q]: the same wherever and in whatever order it is counted."""
    salt = seed.to_bytes(8, "little", signed=True)
    names = (name.encode(errors="surrogatepass") for name in ids)
    digests = b"".join(hashlib.blake2b(name, digest_size=8, salt=salt).digest() for name in names)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _choose_sample(
    trace: Trace, owner_Q: npt.NDArray[np.uint64], size: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """The `size` tokens with the smallest keys: key, block, row in the block, key of the request; keys ascend."""
    parts: list[tuple[npt.NDArray[Any], ...]] = []
    best = tuple(np.zeros(0, dtype=kind) for kind in (np.uint64, np.int64, np.int64, np.uint64))
    for number, block in enumerate(trace.blocks()):
        owner = owner_Q[block.request_T]
        position = block.column_T("position").astype(np.uint64)
        key = _key(owner ^ _key(position * np.uint64(2) + block.column_T("phase").astype(np.uint64)))
        # folders that number their requests alike must not share keys: what the token visited tells them apart
        for layer in sorted({0, trace.model.num_layers - 1}):
            for column in block.ids_TK(layer).T:
                key = _key(key ^ column.astype(np.uint64))
        full = len(best[0]) >= size
        rows = np.flatnonzero(key < best[0][-1]) if full else np.arange(len(key))
        parts = [best, (key[rows], np.full(len(rows), number), rows, owner[rows])]
        merged = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
        order = np.argsort(merged[0], kind="stable")[:size]
        best = tuple(column[order] for column in merged)
    if not len(best[0]):
        raise TraceError("the trace has no tokens of the selected requests; select other requests or record more")
    return best[0], best[1], best[2], best[3]


def _present(trace: Trace) -> npt.NDArray[np.bool_]:
    return trace.tokens_Q() > 0


def _key(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A step of splitmix64: the golden offset keeps 0 from standing still."""
    return mix(x + GOLDEN)
