"""The shape of the library: few packages, small files, imports that go down only."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
LIBRARY = REPOSITORY / "placement"
FILES = sorted(LIBRARY.rglob("*.py"))
CONTRACTS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
TWINS = {"readers", "exporters"}  # the reader and the exporter of an engine bear the name of the engine


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in FILES}


def imports_of(path: Path) -> set[str]:
    """Modules of the library that a module imports, anywhere in its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found & set(MODULES)


def test_the_top_of_the_library_is_small() -> None:
    """What a newcomer sees first: packages and the few modules that belong to none."""
    entries = [path.name for path in LIBRARY.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 22, sorted(entries)


def test_the_contract_is_short_and_covers_every_package() -> None:
    """import-linter refuses a package that the contract forgets (`exhaustive`)."""
    (layers,) = [one for one in CONTRACTS if one["type"] == "layers"]
    assert layers["exhaustive"] and layers["containers"] == ["placement"]
    assert len(layers["layers"]) <= 14


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_holds_one_idea(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


def test_no_modules_import_each_other() -> None:
    """Neither two modules nor a longer circle, imports within functions included."""
    graph = {name: imports_of(path) for name, path in MODULES.items()}
    while leaves := [name for name, below in graph.items() if not below & set(graph)]:
        for name in leaves:
            del graph[name]
    assert graph == {}, "these modules are in a circle, or above one"


def test_one_word_names_one_thing() -> None:
    """Two public classes of one name make a reader look up which is meant."""
    places: dict[str, list[str]] = defaultdict(list)
    for name, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name)
    twice = {name: where for name, where in places.items() if len(where) > 1}
    assert not {name: where for name, where in twice.items() if {re.split(r"\.", one)[1] for one in where} != TWINS}
