"""Imported by the process that jobs are forked from: compiled kernels are loaded there once, not in every job."""

from __future__ import annotations

import gc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba as nb
import numpy as np

from placement.core.cluster import Cluster
from placement.core.model import Model
from placement.pipeline.solve import solve
from placement.pipeline.warm_up import FIRST_TOP_K, tiny_trace
from placement.report.solution.solution_page import report_html
from placement.solvers.annealing.anneal_copies import copies_kernel
from placement.solvers.annealing.anneal_single import single_kernel
from placement.solvers.balancing.balance_kernels import balanced_row
from placement.solvers.balancing.even_rows import anneal_rows
from placement.solvers.options import Options
from placement.solvers.pieces import EXPERTS
from placement.workload.counts_file import ExpertCounts
from placement_api.jobs.loading import watch

WORK = 100


def warm() -> None:
    """Solve a tiny problem of each kind whose kernels were compiled before. Those of a new installation are compiled by
    the first jobs that need them: no other job is to wait for that."""
    balance = _compiled(balanced_row)
    redundant = [number for number, kernel in ((0, single_kernel), (4, copies_kernel)) if _compiled(kernel)]
    if balance:
        _balance()
    if redundant:
        _place(redundant)
    if not balance and not redundant:
        first: Any = nb.njit(_first)
        first(0)  # numba gets ready in a quarter of a second, which every process forked from here is spared


def _first(value: int) -> int:
    return value


def _balance() -> None:
    count_QLE = np.array([[[5, 1, 1, 1], [1, 5, 1, 1]]], dtype=np.int64)
    model = Model(name="warm", layer_ids=(0, 1), num_experts=4, top_k=1)
    counts = ExpertCounts(model=model, count_QLE=count_QLE, unit=1.0, selected=np.arange(1))
    for solver in ("balance", "auto"):
        options = Options(objective="balance", solver=solver)
        solve(counts, Cluster.fit(4, num_nodes=2, gpus_per_node=1), options, holdout=0.0, workers=1)


def _place(redundant: list[int]) -> None:
    with tiny_trace(EXPERTS, FIRST_TOP_K) as trace:
        for number in redundant:
            cluster = Cluster.fit(EXPERTS, num_nodes=2, gpus_per_node=2, redundant_experts=number)
            options, parts = Options(work_limit=WORK), _compiled(anneal_rows)
            report_html(solve(trace, cluster, options, workers=1, by_domain=parts))


def _compiled(kernel: Any) -> bool:
    """True if the compiled kernel lies in numba's cache."""
    return any(Path(kernel.stats.cache_path).glob(f"*.{kernel.__name__}-*.nbi"))


with suppress(Exception):  # jobs say what is wrong, and go without
    warm()
watch.stop()
gc.freeze()  # collections in jobs do not touch, and so not copy, what they share
