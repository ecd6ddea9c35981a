"""The public API is what `placement.__all__` says: present, documented, and nothing besides."""

from __future__ import annotations

import importlib
import inspect
import re
from importlib import metadata
from types import ModuleType

import pytest

import placement

NAMES = [
    "Cluster",
    "Evaluation",
    "InfeasibleError",
    "InputError",
    "LimitError",
    "MigrationPlan",
    "Model",
    "Options",
    "Placement",
    "PlacementError",
    "Solution",
    "StepCost",
    "Trace",
    "Workload",
    "__version__",
    "count",
    "evaluate",
    "evaluate_steps",
    "get_exporter",
    "load_placement",
    "migration_plan",
    "open_trace",
    "save_placement",
    "solution_document",
    "solve",
]


def test_the_list() -> None:
    """Adding or taking away a public name is a decision: this list changes with it."""
    assert sorted(placement.__all__) == sorted(NAMES)
    assert len(set(placement.__all__)) == len(placement.__all__)


def test_nothing_public_besides() -> None:
    """Every name without an underscore is either in __all__ or a submodule."""
    others = {
        name
        for name, value in vars(placement).items()
        if not name.startswith("_") and name not in placement.__all__ and not isinstance(value, ModuleType)
    }
    assert others - {"annotations"} == set()


@pytest.mark.parametrize("name", [name for name in placement.__all__ if name != "__version__"])
def test_importable_and_documented(name: str) -> None:
    """Each name has a docstring of its own that says what it is for."""
    value = getattr(placement, name)
    assert not isinstance(value, ModuleType), f"{name} is a module: a submodule of that name hides the object"
    text = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    assert text and text.strip(), f"{name} has no docstring"
    # what dataclasses make up is no documentation
    assert not text.startswith(f"{name}("), f"{name} has only the generated docstring"


def test_names_survive_the_import_of_submodules() -> None:
    """Importing a submodule of the same name as a function must not replace the function."""
    importlib.import_module("placement.pipeline.solve")
    importlib.import_module("placement.workload.count")
    importlib.import_module("placement.cli.solve")
    assert callable(placement.solve)
    assert callable(placement.count)
    from placement import solve

    assert callable(solve)


def test_errors_form_a_tree() -> None:
    """A caller can catch everything of ours at once, and exit codes are those that the issue names."""
    for error, code in ((placement.InputError, 2), (placement.InfeasibleError, 3), (placement.LimitError, 4)):
        assert issubclass(error, placement.PlacementError)
        assert error.exit_code == code


def test_version() -> None:
    """One version, the same for the package and for its distribution."""
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", placement.__version__)
    assert metadata.version("expert-placement") == placement.__version__
