"""Every registered solver keeps the contract of solvers, without a further word."""

from __future__ import annotations

import pytest

from placement.errors import OptionError
from placement.solvers import SOLVERS, get_solver
from placement.solvers.base import Solver
from placement.testing.solvers import SolverContract


class TestRegisteredSolvers(SolverContract):
    @pytest.fixture(params=SOLVERS)
    def solver(self, request: pytest.FixtureRequest) -> Solver:
        return get_solver(request.param)

    def test_name_is_that_of_the_registry(self, solver: Solver, request: pytest.FixtureRequest) -> None:
        """Reports name the solver as the user chose it."""
        assert request.node.callspec.params["solver"] == solver.name


def test_unknown_solver_lists_the_known() -> None:
    """A typo is answered with the names that would have worked."""
    with pytest.raises(OptionError, match=r"graphs.*choose one of.*graph"):
        get_solver("graphs")
