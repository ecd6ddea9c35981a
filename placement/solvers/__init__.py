"""The registry: a solver is one file and one line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from placement.support.registry import Registry

if TYPE_CHECKING:
    from placement.solvers.base import Solver

SOLVERS: Registry[Solver] = Registry(
    "solver=",
    {
        "auto": "placement.solvers.auto:Auto",
        "anneal": "placement.solvers.annealing.anneal:Anneal",
        "linear": "placement.solvers.linear:Linear",
        "round-robin": "placement.solvers.round_robin:RoundRobin",
        "eplb": "placement.solvers.eplb:Eplb",
        "balance": "placement.solvers.balancing.balance_solver:Balance",
        "graph": "placement.solvers.graph:Graph",
        "exhaustive": "placement.solvers.exact.exhaustive:Exhaustive",
        "matching": "placement.solvers.matching:Matching",
        "ilp": "placement.solvers.exact.ilp:Ilp",
    },
)
AS_THEY_ARE = ("linear", "eplb", "round-robin")  # what engines do, whatever is balanced at run time


def get_solver(name: str) -> Solver:
    """The solver of that name, which answers where GPUs of a node share load at run time too.

    Raises:
        OptionError: no solver has that name.
    """
    solver = SOLVERS.make(name)
    if name in AS_THEY_ARE:
        return solver
    from placement.solvers.shared_nodes import SharedNodes

    return SharedNodes(solver)


__all__ = ["SOLVERS", "get_solver"]
