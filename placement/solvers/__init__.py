"""The registry: a solver is one file and one line here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

from placement.errors import OptionError

if TYPE_CHECKING:
    from placement.solvers.base import Solver

SOLVERS = {
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
}


def get_solver(name: str) -> Solver:
    """The solver of that name; its module is imported only now. Raises OptionError."""
    if name not in SOLVERS:
        raise OptionError(f"solver={name!r} is unknown; choose one of {', '.join(SOLVERS)}")
    module, attribute = SOLVERS[name].split(":")
    return cast("Solver", getattr(import_module(module), attribute)())


__all__ = ["SOLVERS", "get_solver"]
