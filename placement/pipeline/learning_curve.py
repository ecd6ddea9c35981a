"""A learning curve from the trace itself: what twice the requests would bring.

The curve comes from the training requests alone, n of them. They are cut into two halves of about as many tokens, and
each half into two quarters. On some layers a quick search fits a quarter and the half that has the quarter; the other
half judges. Every quarter is fitted on some layers, so that all requests judge.

- Sends: what the half saves beside the quarter is what the doubling from n/4 to n/2 brings. The doubling from n to 2n
  comes two doublings later. Where what is lost to few requests falls as n^-b, each doubling brings 2^-b of the one
  before; SENDS_LATER has b from 1 to 0.32.
- Imbalance: the half's map has e more on the other half than what no further request can lower. That is at least 1, and
  at most about what the map has on its own half, where sends and doubt keep imbalance up; so e is a range. Loads of n
  fitted and m other requests differ as (1/n + 1/m)^b, so e is that of 4/n. All later requests together (1/n) show
  e / 4^b, and after twice the requests e / 8^b. The difference is IMBALANCE_LATER of e for any b from 0.32 to 1.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from placement.core.cluster import Cluster
from placement.solvers import get_solver
from placement.solvers.layer_problems import layer_problem
from placement.solvers.options import Options
from placement.support.parallel import run_tasks
from placement.workload.of_requests import of_requests
from placement.workload.workload import Workload

FEWEST_REQUESTS = 8  # for a curve: two in each quarter
FEWEST_FITS, MOST_FITS = 4, 8  # of a quarter and its half; half as many as layers
QUICK_MOVES, QUICK_MOVES_OF_SLOT = 10_000, 100
SENDS_LATER = (0.25, 0.64)
IMBALANCE_LATER = (0.125, 0.148)

Range = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubling:
    """What twice the requests would bring, as (least, most).

    Attributes:
        sends: Fewer sends per token; None: sends do not count, or are unknown.
        imbalance: Less rank imbalance.
    """

    sends: Range | None
    imbalance: Range


def doubling(workload: Workload, cluster: Cluster, options: Options, executor: Executor | None) -> Doubling | None:
    """The learning curve of a workload, extrapolated; None where it cannot be told.

    Deterministic in (workload, cluster, options), whatever the executor.
    """
    requests, num_layers = len(workload.profile_key_Q), workload.model.num_layers
    if not FEWEST_REQUESTS <= requests < workload.profile_requests:
        return None
    fits = min(max(num_layers // 2, FEWEST_FITS), MOST_FITS)
    quarter_Q = _quarters(workload)
    tasks = [
        (
            of_requests(workload, quarter_Q == fit % 4, fit * num_layers // fits),
            of_requests(workload, quarter_Q % 2 == fit % 2, fit * num_layers // fits),
            of_requests(workload, quarter_Q % 2 != fit % 2, fit * num_layers // fits),
        )
        for fit in range(fits)
    ]
    if options.sends_count and not all(len(one.sample_key_S) for task in tasks for one in task):
        return None
    with threadpool_limits(1, user_api="blas"):
        found = run_tasks(partial(_learn, cluster, _quick(options, cluster)), tasks, executor)
    found_F3 = np.array(found)
    mean_3, error_3 = found_F3.mean(axis=0), found_F3.std(axis=0, ddof=1) / np.sqrt(fits)
    low_3, high_3 = np.maximum(mean_3 - error_3, 0.0).tolist(), np.maximum(mean_3 + error_3, 0.0).tolist()
    sends = (low_3[0] * SENDS_LATER[0], high_3[0] * SENDS_LATER[1])
    imbalance = (low_3[1] * IMBALANCE_LATER[0], high_3[2] * IMBALANCE_LATER[1])
    return Doubling(sends=sends if options.sends_count else None, imbalance=imbalance)


def _quick(options: Options, cluster: Cluster) -> Options:
    moves = max(QUICK_MOVES, QUICK_MOVES_OF_SLOT * cluster.num_slots)
    limit = moves if options.work_limit is None else min(moves, options.work_limit)
    return replace(options, solver="anneal" if options.sends_count else "balance", bound="none", work_limit=limit)


def _quarters(workload: Workload) -> npt.NDArray[np.int64]:
    """The quarter of every profiled request, int64 [Q]: about as many tokens in each, by the order of the keys else."""
    size_Q = workload.profile_QLE[:, 0].sum(axis=1, dtype=np.int64)
    order = np.argsort(-size_Q, kind="stable")
    place = np.arange(len(order))
    turn = np.where(place // 4 % 2 == 0, place % 4, 3 - place % 4)  # 0 1 2 3 3 2 1 0: the largest are shared fairly
    quarter_Q = np.empty(len(order), dtype=np.int64)
    quarter_Q[order] = turn
    return quarter_Q


def _learn(cluster: Cluster, options: Options, task: tuple[Workload, Workload, Workload]) -> tuple[float, float, float]:
    """On the requests that judge: sends that the map of the half saves beside that of the quarter; and how far the
    imbalance of the half's map lies above that on its own requests, and above 1."""
    quarter, half = (layer_problem(one, cluster, options, 0) for one in task[:2])
    judge = layer_problem(task[2], cluster, replace(options, objective="balance"), 0)  # balance: no bootstraps
    solver = get_solver(options.solver)
    few_P, many_P = (solver.solve_layer(problem).phy2log_P for problem in (quarter, half))
    many = judge.score(many_P)
    own = half.score(many_P).imbalance
    return judge.score(few_P).sends - many.sends, many.imbalance - own, many.imbalance - 1
