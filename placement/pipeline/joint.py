"""Placement and grouping together: experts move to the requests, requests move to the experts, in turn."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from placement.core.choices import TOKEN_TOLERANCE
from placement.core.cluster import Cluster
from placement.core.placement import Placement
from placement.grouping.align import align_nodes
from placement.grouping.assign import Assignment, assign_homes
from placement.grouping.home_costs import HomeCosts, home_costs
from placement.grouping.requests import Requests
from placement.pipeline.layer_answer import LayerReport
from placement.pipeline.run import Run
from placement.solvers.options import Options
from placement.support.progress import Progress
from placement.traces.split import request_keys
from placement.traces.trace import Trace
from placement.workload.workload import Workload

ROUNDS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Joint:
    """A placement and the homes that it is for, of the training requests; how its layers were solved.

    start  the placement for random homes, its nodes labelled for the first homes
    """

    placement: Placement
    start: Placement
    homes: Assignment
    costs: HomeCosts
    layers: tuple[LayerReport, ...]


def solve_joint(
    run: Run,
    trace: Trace,
    requests: Requests,
    workload: Workload,
    cluster: Cluster,
    options: Options,
    start: Placement,
    *,
    tolerance: float = TOKEN_TOLERANCE,
    rounds: int = ROUNDS,
) -> Joint:
    """From a placement for random homes to one for the homes that the requests of `trace` then get.

    trace     the training requests, all their tokens; `workload` is its count
    start     a placement for random homes
    rounds    how often the layers are solved again for the homes of the moment

    Place first, then group: on a linear placement grouping alone gains little. Every round starts from the maps of the
    one before, and the homes are chosen exactly, on all tokens. Bounds are proven in the last round: those of earlier
    homes would say nothing of the answer.
    """
    layers: tuple[LayerReport, ...] = ()
    costs = _costs(trace, requests, start, cluster, options, run.threads)
    aligned, cost_LQN = align_nodes(start, costs.cost_LQN, costs.tokens_Q, cluster, tolerance)
    homes = assign_homes(cost_LQN.sum(axis=0), costs.tokens_Q, tolerance=tolerance)
    home_options = replace(options, time_limit_s=options.time_limit_s / rounds if options.time_limit_s else None)
    placement = aligned
    for number in range(rounds):
        home_S = homes_of_sample(workload, requests, homes.home_Q)
        last = number == rounds - 1
        round_options = home_options if last else replace(home_options, bound="none")
        maps, layers = run.fit(workload, cluster, round_options, home_S=home_S, starts=placement)
        placement = maps[options.solver]
        costs = _costs(trace, requests, placement, cluster, options, run.threads)
        homes = assign_homes(costs.cost_QN, costs.tokens_Q, tolerance=tolerance)
        run.listener(Progress(stage="group", done=number + 1, total=rounds))
    return Joint(placement=placement, start=aligned, homes=homes, costs=costs, layers=layers)


def _costs(
    trace: Trace, requests: Requests, placement: Placement, cluster: Cluster, options: Options, executor: Executor
) -> HomeCosts:
    return home_costs(
        trace,
        requests,
        placement,
        cluster,
        replica_choice=options.replica_choice,
        transport=options.transport,
        executor=executor,
    )


def homes_of_sample(workload: Workload, requests: Requests, home_Q: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The home of each sampled token, int32 [S], by the key of its request."""
    key_Q = request_keys(list(requests.ids), workload.seed)
    order = np.argsort(key_Q)
    at_S = order[np.searchsorted(key_Q[order], workload.sample_owner_S)]
    return np.asarray(home_Q[at_S], dtype=np.int32)
