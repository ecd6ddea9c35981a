"""The lowest rank imbalance of one layer: `balance_maps`, and on small layers from many more starts.

Where loads vary and sends do not count, also the map that is balanced under all rows of loads.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.solvers.balancing.balance import balance_maps
from placement.solvers.balancing.balance_kernels import balanced_row, pack, share_slots
from placement.solvers.balancing.even_rows import MOVES, even_row
from placement.solvers.problem import LayerProblem, LayerSolution

SOLVER_WORK = 1_000_000
# on layers of few experts the counts of copies decide: maps of loads that are blurred try many
FEW_EXPERTS, BATCHES, STARTS, BLURS = 16, 16, 32, (0.1, 0.3, 0.6)

Rows = npt.NDArray[np.int32]


class Balance:
    name = "balance"

    def unsupported(self, problem: LayerProblem) -> str | None:
        return None

    def solve_layer(self, problem: LayerProblem) -> LayerSolution:
        """A map never less balanced than EPLB's, where copies share evenly.

        On layers of few experts the map is the one, of several that are, that the replica choice leaves most balanced.
        """
        work = problem.options.work_limit or SOLVER_WORK
        maps_XP = balance_maps(problem.load_E[None], problem.cluster, num_groups=problem.num_groups, work=work)
        if problem.num_experts <= FEW_EXPERTS and not problem.out_of_time():
            maps_XP = np.concatenate([maps_XP, _from_blurred_loads(problem, maps_XP, work)])
        row = min(maps_XP, key=lambda row_P: problem.score(row_P).imbalance)
        if problem.send_price == 0 and len(problem.load_BE) > 1 and not problem.out_of_time():
            moves = problem.options.work_limit or MOVES
            other = even_row(problem.load_BE, problem.cluster, power=1, moves=moves, seed=problem.seed)
            row = other if problem.score(other).better_than(problem.score(row)) else row
        return LayerSolution(solver=self.name, phy2log_P=row)


def _from_blurred_loads(problem: LayerProblem, first_XP: Rows, work: int) -> Rows:
    """The best map of each batch of starts: of `first_XP`, and of packings of loads with noise; int32 [BATCHES, P]."""
    cluster, rng = problem.cluster, np.random.default_rng(problem.seed)
    slowness_G, slots, found = 1 / cluster.speed_G(), cluster.slots_per_gpu, []
    for _ in range(BATCHES):
        rows = list(first_XP)
        for start in range(STARTS):
            load_E = problem.load_E * rng.lognormal(0, BLURS[start % len(BLURS)], problem.num_experts)
            copies_E = share_slots(load_E, cluster.num_slots, cluster.num_ranks, 0.5 * (start % 2), 0)
            rows.append(pack(load_E, copies_E, slowness_G, slots))
        found.append(balanced_row(problem.load_E, slowness_G, slots, np.array(rows), 0.0, np.inf, work))
    return np.array(found)
