"""The lowest rank imbalance of one layer: `balance_maps`, and on small layers the optimum with proof."""

from __future__ import annotations

from placement.solvers.balancing.balance import balance_maps
from placement.solvers.balancing.balance_exact import exact_balance
from placement.solvers.balancing.balance_kernels import highest
from placement.solvers.problem import LayerProblem, LayerSolution

SOLVER_WORK = 1_000_000
EXACT_EXPERTS, EXACT_NODES = 16, 2_000_000  # up to so many experts the solver looks for the optimum itself


class Balance:
    name = "balance"

    def unsupported(self, problem: LayerProblem) -> str | None:
        return None

    def solve_layer(self, problem: LayerProblem) -> LayerSolution:
        """Says `optimal` only where the objective is what this minimizes, and the search came to its end."""
        cluster, load_E = problem.cluster, problem.load_E
        work = problem.options.work_limit or SOLVER_WORK
        row, proven = balance_maps(load_E[None], cluster, num_groups=problem.num_groups, work=work)[0], False
        if problem.num_experts <= EXACT_EXPERTS and not problem.out_of_time():
            found = exact_balance(load_E, cluster, nodes=min(work, EXACT_NODES))
            proven = found.proven
            slowness_G = 1 / cluster.speed_G()
            if highest(found.phy2log_P, load_E, slowness_G) < highest(row, load_E, slowness_G):
                row = found.phy2log_P
        same = problem.send_price == 0 and len(problem.load_BE) == 1 and not problem.num_redundant
        if not (same and proven):
            return LayerSolution(solver=self.name, phy2log_P=row)
        return LayerSolution(
            solver=self.name, phy2log_P=row, status="optimal", bound=problem.score(row).objective * (1 - 1e-9)
        )
