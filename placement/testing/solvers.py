"""The contract of a solver, as tests: inherit `SolverContract` and pytest runs it on your solver.

Example::

    class TestMine(SolverContract):
        @pytest.fixture
        def solver(self):
            return Mine()

Works with any solver of the protocol in `placement.solvers.base`; needs no solver to be registered.
"""

from __future__ import annotations

import time
from dataclasses import fields, replace

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.core.placement import map_faults, wasted_P
from placement.core.topology import EVEN, Topology
from placement.cost.choices import REPLICA_CHOICES
from placement.errors import LimitError
from placement.solvers.base import Solver
from placement.solvers.options import Options
from placement.solvers.problem import LayerProblem, LayerSolution
from placement.testing.problems import brute_force, planted_problem, random_problem

STATUSES = ("optimal", "feasible", "limit")
QUICK = Options(work_limit=20_000)


def contract_problems() -> dict[str, LayerProblem]:
    """Every shape of problem that a solver has to cope with, by name; all small."""
    shapes = {
        "one copy": (8, 2, Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=2), None),
        "one node": (6, 2, Cluster(num_nodes=1, gpus_per_node=2, slots_per_gpu=3), None),
        "one rank": (4, 2, Cluster(num_nodes=1, gpus_per_node=1, slots_per_gpu=4), None),
        "one slot a rank": (6, 2, Cluster(num_nodes=3, gpus_per_node=2, slots_per_gpu=1), None),
        "nodes no power of two": (9, 3, Cluster(num_nodes=3, gpus_per_node=1, slots_per_gpu=3), None),
        "groups": (8, 2, Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=2), 4),
        "groups that nodes do not divide": (12, 2, Cluster(num_nodes=2, gpus_per_node=1, slots_per_gpu=6), 3),
        "redundant": (8, 2, Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=3), None),
        "redundant, three nodes": (5, 2, Cluster(num_nodes=3, gpus_per_node=1, slots_per_gpu=3), None),
        "redundant, groups": (8, 2, Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=3), 2),
        "everything everywhere": (4, 2, Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=4), None),
        "unequal speeds": (
            8,
            2,
            Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=2, gpu_speeds=(1.0, 0.5, 1.0, 2.0)),
            None,
        ),
        "redundant, unequal speeds": (
            6,
            2,
            Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=2, gpu_speeds=(1.0, 1.0, 0.5, 0.5)),
            None,
        ),
        "top-1": (4, 1, Cluster(num_nodes=2, gpus_per_node=1, slots_per_gpu=2), None),
        "all experts chosen": (4, 4, Cluster(num_nodes=2, gpus_per_node=1, slots_per_gpu=2), None),
    }
    problems = {
        name: random_problem(num_experts, top_k, cluster, num_groups=groups, options=QUICK, num_tokens=60, seed=number)
        for number, (name, (num_experts, top_k, cluster, groups)) in enumerate(shapes.items())
    }
    planted, _ = planted_problem(
        8, 2, Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=2), options=QUICK, num_tokens=60
    )
    few = random_problem(
        8, 2, Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=2), options=QUICK, num_tokens=1, bootstraps=0
    )
    return problems | {"planted": planted, "one token, no bootstraps": few} | _short_problems() | _priced_problems(8, 2)


def _short_problems() -> dict[str, LayerProblem]:
    """Sets of fewer than K experts, or of none."""
    one_copy = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=2)
    redundant = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=3)
    shapes = {
        "short sets": (3, one_copy, 0.3),
        "short sets, redundant": (3, redundant, 0.3),
        "short sets, top-1": (1, one_copy, 0.3),
        "short sets, few of many places": (6, redundant, 0.7),
        "no set has an expert": (2, one_copy, 1.0),
        "no set has an expert, redundant": (2, redundant, 1.0),
    }
    return {
        name: random_problem(8, top_k, cluster, lacking=lacking, options=QUICK, num_tokens=60, seed=number)
        for number, (name, (top_k, cluster, lacking)) in enumerate(shapes.items())
    }


def tiny_problems() -> dict[str, LayerProblem]:
    """Problems whose optimum `brute_force` finds at once, under every replica choice."""
    problems = {
        "one copy": random_problem(6, 2, Cluster(num_nodes=3, gpus_per_node=1, slots_per_gpu=2), options=QUICK),
        "two ranks a node": random_problem(6, 3, Cluster(num_nodes=1, gpus_per_node=2, slots_per_gpu=3), options=QUICK),
        "planted": planted_problem(6, 3, Cluster(num_nodes=2, gpus_per_node=1, slots_per_gpu=3), options=QUICK)[0],
        "unequal speeds": random_problem(
            4, 2, Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=1, gpu_speeds=(1.0, 1.0, 3.0, 1.0)), options=QUICK
        ),
    }
    problems |= {
        "short sets": random_problem(
            6, 3, Cluster(num_nodes=3, gpus_per_node=1, slots_per_gpu=2), lacking=0.3, options=QUICK
        ),
        "short sets, two experts a node": random_problem(
            6, 4, Cluster(num_nodes=3, gpus_per_node=2, slots_per_gpu=1), lacking=0.4, options=QUICK
        ),
        "no set has an expert": random_problem(
            4, 2, Cluster(num_nodes=2, gpus_per_node=1, slots_per_gpu=2), lacking=1.0, options=QUICK
        ),
    }
    two_nodes = Cluster(num_nodes=2, gpus_per_node=1, slots_per_gpu=3)
    for kind, lacking in (("", 0.0), (", short sets", 0.3)):
        redundant = random_problem(4, 2, two_nodes, lacking=lacking, options=QUICK)
        for choice in REPLICA_CHOICES:
            problems[f"redundant, {choice}{kind}"] = replace(redundant, options=replace(QUICK, replica_choice=choice))
    return problems | _priced_problems(4, 1) | _priced_problems(4, 1, lacking=0.3)


def _priced_problems(num_experts: int, slots: int, lacking: float = 0.0) -> dict[str, LayerProblem]:
    """On two nodes of two GPUs: other transports, unequal links, balance alone."""
    slow = Topology(node_gbps=(400.0, 150.0))
    costs = Topology(rank_cost=((0, 0.1, 1, 2), (0.1, 0, 2, 1), (1, 2, 0, 0.1), (3, 1, 0.1, 0)))
    shapes = {
        "copies for ranks": (0, "rank", "locality", EVEN),
        "copies for ranks, redundant": (1, "rank", "locality", EVEN),
        "copies for assignments, redundant": (1, "assignment", "locality", EVEN),
        "unequal nodes": (0, "node", "locality", slow),
        "unequal nodes, assignments": (0, "assignment", "time", slow),
        "unequal ranks": (0, "rank", "locality", costs),
        "unequal ranks, redundant": (1, "rank", "time", costs),
        "balance alone": (0, "node", "balance", EVEN),
        "balance alone, redundant": (1, "allgather", "locality", slow),
    }
    return {
        name + (", short sets" if lacking else ""): random_problem(
            num_experts - redundant,  # as many slots as without
            2,
            Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=slots, topology=topology),
            lacking=lacking,
            options=replace(QUICK, transport=transport, objective=objective),
            num_tokens=60,
            seed=number,
        )
        for number, (name, (redundant, transport, objective, topology)) in enumerate(shapes.items())
    }


class SolverContract:
    """What every solver must do. Give a fixture `solver`; problems that `unsupported` turns down are left out."""

    def test_map_is_valid(self, solver: Solver) -> None:
        """Every expert has a slot, every rank exactly its slots, and no rank holds an expert twice."""
        for name, problem in _supported(solver, contract_problems()):
            solution = solver.solve_layer(problem)
            _check_valid(problem, solution, name)

    def test_same_seed_gives_same_map(self, solver: Solver) -> None:
        """Answers are reproducible by seed and work limit, whatever was solved before on the same object."""
        chosen = _supported(solver, contract_problems())
        first = {name: _map_of(solver, problem) for name, problem in chosen}
        again = {name: _map_of(solver, problem) for name, problem in reversed(chosen)}
        fresh = {name: _map_of(solver, problem) for name, problem in _supported(solver, contract_problems())}
        for name, row in first.items():
            _require(np.array_equal(row, again[name]), f"{name}: another map in another order of calls")
            _require(np.array_equal(row, fresh[name]), f"{name}: another map for an equal problem")

    def test_problem_is_not_changed(self, solver: Solver) -> None:
        """Layers and solvers share arrays, so a solver may not write to the problem."""
        for name, problem in _supported(solver, contract_problems()):
            before = {
                field.name: np.copy(getattr(problem, field.name)) for field in fields(problem) if _is_array(field.name)
            }
            solver.solve_layer(problem)
            for field_name, values in before.items():
                _require(np.array_equal(values, getattr(problem, field_name)), f"{name}: {field_name} was changed")

    def test_past_deadline(self, solver: Solver) -> None:
        """Out of time before it began, a solver answers with a valid map or LimitError, and does so at once."""
        for name, problem in _supported(solver, contract_problems()):
            late = replace(problem, deadline=time.monotonic() - 1.0)
            try:
                solution = solver.solve_layer(late)
            except LimitError:
                continue
            _check_valid(late, solution, name)

    def test_status_and_bound(self, solver: Solver) -> None:
        """A bound is never above the optimum of brute force, and `optimal` is said of optimal maps only."""
        for name, problem in _supported(solver, tiny_problems()):
            optimum, _ = brute_force(problem)
            solution = solver.solve_layer(problem)
            _require(solution.status in STATUSES, f"{name}: status {solution.status!r} is none of {STATUSES}")
            if solution.bound is not None:
                _require(
                    solution.bound <= optimum + 1e-9, f"{name}: bound {solution.bound} is above the optimum {optimum}"
                )
            objective = problem.score(solution.phy2log_P).objective
            if solution.status == "optimal":
                _require(objective <= optimum + 1e-6, f"{name}: {objective} is called optimal; {optimum} is possible")

    def test_name_and_reasons(self, solver: Solver) -> None:
        """A solver has a name, and a reason in words where it turns a problem down."""
        _require(bool(solver.name), "the solver has no name")
        for name, problem in contract_problems().items():
            reason = solver.unsupported(problem)
            _require(reason is None or bool(reason), f"{name}: turned down without a reason")


def _supported(solver: Solver, problems: dict[str, LayerProblem]) -> list[tuple[str, LayerProblem]]:
    return [(name, problem) for name, problem in problems.items() if solver.unsupported(problem) is None]


def _map_of(solver: Solver, problem: LayerProblem) -> npt.NDArray[np.int32]:
    return solver.solve_layer(problem).phy2log_P.copy()


def _check_valid(problem: LayerProblem, solution: LayerSolution, name: str) -> None:
    row = np.asarray(solution.phy2log_P)
    _require(row.dtype == np.int32, f"{name}: phy2log_P is {row.dtype}; int32 is needed")
    faults = map_faults(
        row[None],
        num_layers=1,
        num_experts=problem.num_experts,
        num_ranks=problem.cluster.num_ranks,
        slots_per_gpu=problem.cluster.slots_per_gpu,
    )
    _require(not faults, f"{name}: {'; '.join(faults)}")
    wasted = np.flatnonzero(wasted_P(row, problem.cluster.num_ranks))
    _require(not len(wasted), f"{name}: slots {wasted.tolist()} hold experts that their ranks have already")


def _is_array(field_name: str) -> bool:
    return field_name.endswith(("_UK", "_U", "_BE", "_EE"))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
