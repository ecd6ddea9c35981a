"""The lowest rank imbalance of one layer: `balance_maps`, and on small layers from many more starts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.solvers.balancing.balance import balance_maps
from placement.solvers.balancing.balance_kernels import balanced_row, pack, share_slots
from placement.solvers.problem import LayerProblem, LayerSolution

SOLVER_WORK = 1_000_000
# on layers of few experts the counts of copies decide: maps of loads that are blurred try many
FEW_EXPERTS, BLURRED_STARTS, BLURS = 16, 512, (0.1, 0.3, 0.6)


class Balance:
    name = "balance"

    def unsupported(self, problem: LayerProblem) -> str | None:
        return None

    def solve_layer(self, problem: LayerProblem) -> LayerSolution:
        """The most balanced map that was found, never less balanced than EPLB's."""
        cluster, load_E = problem.cluster, problem.load_E
        work = problem.options.work_limit or SOLVER_WORK
        rows = balance_maps(load_E[None], cluster, num_groups=problem.num_groups, work=work)
        if problem.num_experts <= FEW_EXPERTS and not problem.out_of_time():
            starts = np.concatenate([rows, _blurred(problem)])
            slowness_G = 1 / cluster.speed_G()
            rows = balanced_row(load_E, slowness_G, cluster.slots_per_gpu, starts, 0.0, np.inf, work)[None]
        return LayerSolution(solver=self.name, phy2log_P=rows[0])


def _blurred(problem: LayerProblem) -> npt.NDArray[np.int32]:
    """Packings of loads with noise, int32 [BLURRED_STARTS, P]."""
    cluster, rng = problem.cluster, np.random.default_rng(problem.seed)
    slowness_G, rows = 1 / cluster.speed_G(), []
    for start in range(BLURRED_STARTS):
        load_E = problem.load_E * rng.lognormal(0, BLURS[start % len(BLURS)], problem.num_experts)
        copies_E = share_slots(load_E, cluster.num_slots, cluster.num_ranks, 0.5 * (start % 2), 0)
        rows.append(pack(load_E, copies_E, slowness_G, cluster.slots_per_gpu))
    return np.array(rows)
