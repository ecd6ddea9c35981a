"""What commands have compiled at their first run, compiled now: for images, continuous integration and the service."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from placement.core.cluster import Cluster
from placement.core.model import Model
from placement.cost.draw_slots import draw_balanced, draw_slots
from placement.cost.kernel_homes import cost_of_covers, cost_of_single
from placement.cost.kernel_ranks import draw_by_rank
from placement.cost.kernel_row_hash import draw_by_row_hash
from placement.cost.kernel_step_flow import assign_step
from placement.cost.step_groups import ask_step, take_slots
from placement.cost.steps.kernel_split import split_steps
from placement.cost.steps.kernel_steps import cost_steps
from placement.cost.steps.replay import evaluate_steps
from placement.cost.steps.uniform import draw_sets
from placement.grouping.assign_kernels import repair
from placement.pipeline.captures_source import any_source
from placement.pipeline.solve import domains_of, solve
from placement.pipeline.with_homes import solve_grouped
from placement.runtime.kernels import cpu, cpu_sums
from placement.solvers.balancing.balance_kernels import balanced_row
from placement.solvers.options import Options
from placement.solvers.pieces import COPIES, EXPERTS, TOP_K, WIDE_EXPERTS, all_pieces, pieces_of
from placement.support.compiling import CompilePiece, compile_pieces
from placement.support.parallel import make_executor
from placement.support.progress import Listener, ignore
from placement.traces.checked import check_ids
from placement.traces.format import RequestEntry, id_dtype
from placement.traces.storage.shard_writer import TokenPiece
from placement.traces.trace import Trace, open_trace
from placement.traces.write import write_trace
from placement.workload.counting import set_counter, token_keys
from placement.workload.workload import Workload

TOP_KS = (1, 2, 4, 6, 8)  # each top-k has a counting kernel; another top-k compiles its own at its first trace
FIRST_TOP_K = 4  # that of the example
LAYERS, TOKENS, REQUESTS = 2, 256, 8  # of a trace that kernels are compiled on
QUICK = Options(work_limit=10, bound="none")


def warm_up(*, workers: int | None = None, listener: Listener = ignore) -> int:
    """Have numba's cache hold what `solve`, `evaluate` and `group` run, in steps too, what counts traces, and what
    ranks run that serve on a CPU.

    Args:
        workers: processes at once; None: one for each core that this process may use.
        listener: told the stage "compile", but only where there is something to compile.

    Returns:
        How many pieces were compiled: 0 if the cache held them all. Rare solvers and bounds are in none of them.
    """
    solving = [*all_pieces(), COUNTING, RUNTIME]
    # these pieces run whole solves, which find there what the others compiled
    further = [GROUPING, BALANCE, STEPS]
    return sum(compile_pieces(pieces, workers=workers, listener=listener) for pieces in (solving, further))


def warm_up_first() -> None:
    """Have numba's cache hold what the first solve of a service waits for: of a trace of up to 256 experts without
    redundant ones. Several processes that call this share the work."""
    cluster = Cluster.fit(EXPERTS, num_nodes=2, gpus_per_node=2)
    largest, *others = pieces_of(EXPERTS, cluster, Options(), shows_parts=True)
    compile_pieces([largest, FIRST_TRACE, *others], workers=1)


@contextmanager
def tiny_trace(num_experts: int, top_k: int) -> Iterator[Trace]:
    """A random trace of two layers, half of it prefill. The generator of synthetic traces has kernels of its own, which
    nobody waits for here."""
    random = np.random.default_rng(0)
    ids_LTK = random.random((LAYERS, TOKENS, num_experts)).argsort(axis=2)[:, :, :top_k]
    first_T, place_T = np.divmod(np.arange(TOKENS, dtype=np.int32), TOKENS // REQUESTS)
    piece = TokenPiece(
        ids_LTK=ids_LTK.astype(id_dtype(num_experts)),
        request_T=first_T,
        position_T=place_T,
        phase_T=(place_T * 2 >= TOKENS // REQUESTS).astype(np.uint8),
    )
    model = Model(name="tiny", layer_ids=tuple(range(LAYERS)), num_experts=num_experts, top_k=top_k)
    requests = [RequestEntry(id=f"request-{number}") for number in range(REQUESTS)]
    with tempfile.TemporaryDirectory() as folder:
        write_trace(Path(folder), iter([piece]), model=model, requests=requests)
        yield open_trace(Path(folder))


def compile_counting() -> None:
    """Solved, without a search, since a solve also reads the trace to measure on it."""
    for num_experts in (2 * EXPERTS, WIDE_EXPERTS):
        for top_k in TOP_KS:
            with tiny_trace(num_experts, top_k) as trace:
                cluster = Cluster.fit(num_experts, num_nodes=2, gpus_per_node=2)
                solve(trace, cluster, Options(solver="linear", bound="none"), workers=1)


def compile_first_trace() -> None:
    """Counted and parted, as a solve does before its search, and read again to be measured."""
    check_ids(np.arange(FIRST_TOP_K, dtype=np.uint8)[None], FIRST_TOP_K)
    with tiny_trace(EXPERTS, FIRST_TOP_K) as trace, make_executor(1) as executor:
        source = any_source(trace)
        train, _ = source.split(0.5, 0)
        workload, domains = train.count(0, executor, ignore), domains_of(source)
        if domains is not None and isinstance(workload, Workload):
            source.parts_of_profiles(domains, workload)


def compile_grouping() -> None:
    for copies in (0, COPIES):
        with tiny_trace(EXPERTS, TOP_K) as trace:
            cluster = Cluster.fit(EXPERTS, num_nodes=2, gpus_per_node=2, redundant_experts=copies)
            solve_grouped(trace, cluster, QUICK, workers=1)


def compile_balance() -> None:
    with tiny_trace(EXPERTS, TOP_K) as trace:
        cluster = Cluster.fit(EXPERTS, num_nodes=2, gpus_per_node=2, redundant_experts=COPIES)
        solve(trace, cluster, Options(solver="balance", objective="balance", work_limit=10), workers=1)


def compile_steps() -> None:
    """A rule for each kernel that draws slots."""
    with tiny_trace(EXPERTS, TOP_K) as trace:
        cluster = Cluster.fit(EXPERTS, num_nodes=2, gpus_per_node=2, redundant_experts=COPIES)
        solution = solve(trace, cluster, Options(solver="linear", bound="none"), workers=1)
        for rule in DRAWN:
            evaluate_steps(trace, [solution.placement], step_tokens=[1], replica_choice=rule)


def compile_runtime() -> None:
    """Of tokens in float32 and bfloat16, as numpy arrays of the types that torch's tensors become."""
    ids_TK, row_S = np.zeros((2, 2), dtype=np.int64), np.zeros(2, dtype=np.int64)
    weight_TK, words = np.zeros((2, 4), dtype=np.float32), np.zeros((2, 2), dtype=np.uint64)
    cpu.check_choices(ids_TK, weight_TK, 1)
    cpu.distinct_members(ids_TK, row_S, 1, 0)
    cpu.pack_rows(words[:, :1].copy(), words[:, 1:].copy(), row_S, words)
    cpu.order_visits(ids_TK, weight_TK[:, :2], 1)  # a part of the rows that came
    cpu.admit(row_S, row_S, row_S, row_S, False)
    order_S, start = cpu.order_rows(row_S, 1)
    for dtype in (np.float32, np.uint16):
        cpu_sums.sum_rows(np.zeros((2, 8), dtype), order_S, start, weight_TK[0], np.zeros((1, 8), dtype))


COUNTING = CompilePiece(
    run=compile_counting, kernels=(token_keys, check_ids, *(set_counter(top_k) for top_k in TOP_KS)), types="uint16"
)
FIRST_TRACE = CompilePiece(
    run=compile_first_trace, kernels=(token_keys, check_ids, set_counter(FIRST_TOP_K)), types="uint8"
)
GROUPING = CompilePiece(run=compile_grouping, kernels=(repair, cost_of_single, cost_of_covers))
DRAWN = {
    "min-nodes": draw_slots,
    "min-nodes-balanced": draw_balanced,
    "min-nodes-step": ask_step,
    "vllm-hash": draw_by_row_hash,
    "sglang-dynamic": draw_by_rank,
}
STEPS = CompilePiece(
    run=compile_steps, kernels=(cost_steps, split_steps, draw_sets, assign_step, take_slots, *DRAWN.values())
)
RUNTIME = CompilePiece(
    run=compile_runtime,
    kernels=(cpu_sums.sum_rows, cpu.check_choices, cpu.distinct_members, cpu.pack_rows, cpu.order_visits, cpu.admit),
)
BALANCE = CompilePiece(run=compile_balance, kernels=(balanced_row,))
