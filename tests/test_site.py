"""The site that `make docs` builds: no warnings, every page, every public name, a search that needs no server.

And the docstrings that its reference is made of: one layout, which names nothing that is not there.
"""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from placement import errors

REPOSITORY = Path(__file__).parents[1]
GENERATOR = ("sphinx", "furo", "myst_parser")  # the group `docs`
PUBLIC = (
    "placement",
    "placement.analysis.advise",
    "placement.analysis.info",
    "placement.analysis.watch",
    "placement.client",
    "placement.exporters",
    "placement.grouping",
    "placement.readers",
    "placement.runtime",
    "placement.runtime.checkpoint",
    "placement.solvers",
)
WITHOUT_ALL = {
    "placement.cost.choices.base": ["LayerCost", "LayerTokens", "ReplicaChoice"],
    "placement.cost.transports.base": ["Transport"],
    "placement.errors": ["TraceError", "MapError", "ClusterError", "OptionError", "OutputError", "RankError"],
    "placement.exporters.base": ["Exporter", "Importer", "Export", "ExportOptions", "FileMap"],
    "placement.readers.base": ["Reader", "ReadOptions", "Recording", "CountRecording", "Batch"],
    "placement.readers.convert": ["Conversion", "convert"],
    "placement.solvers.base": ["Solver"],
    "placement.solvers.problem": ["LayerProblem", "LayerSolution"],
    "placement.testing.exporters": ["ExporterContract"],
    "placement.testing.problems": ["brute_force", "make_problem"],
    "placement.testing.readers": ["ReaderContract"],
    "placement.testing.replica_choices": ["ReplicaChoiceContract"],
    "placement.testing.solvers": ["SolverContract"],
    "placement.testing.transports": ["TransportContract"],
    "placement.traces.recorder": ["Recorder", "record"],
}
NEED_TORCH = ("placement.runtime", "placement.traces.recorder")
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the command of the Makefile into a temporary folder; a warning is an error."""
    missing = [name for name in GENERATOR if find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: pip install --group docs")
    folder = tmp_path_factory.mktemp("site")
    command = next(line for line in (REPOSITORY / "Makefile").read_text().splitlines() if "-m sphinx" in line)
    words = command.split()[1:-2]  # without the interpreter, the sources and the folder
    done = subprocess.run(
        [sys.executable, *words, "-d", str(folder / "doctrees"), ".", str(folder / "site")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def names(site: Path) -> set[str]:
    """What the reference describes, by the inventory that other projects link by."""
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    return {line.split()[0] for line in zlib.decompress(inventory).decode().splitlines()}


def test_every_page_is_on_the_site(site: Path) -> None:
    """A page that is forgotten in the contents is a warning; one that is forgotten in the sources is found here."""
    pages = ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"]
    pages += [str(path.relative_to(REPOSITORY)) for folder in ("docs", "examples") for path in pages_of(folder)]
    assert [page for page in pages if not (site / page).with_suffix(".html").exists()] == []
    assert "README.html" in (site / "index.html").read_text()


def pages_of(folder: str) -> list[Path]:
    return [path for path in sorted((REPOSITORY / folder).rglob("*.md")) if path.name != "contents.md"]


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_in_the_reference(module: str, names: set[str]) -> None:
    """A name that is exported without a docstring, or without a page, would be missing."""
    exported = set(importlib.import_module(module).__all__) - {"__version__"}
    constants = {name for name in exported if name.isupper()}
    assert [name for name in sorted(exported - constants) if f"{module}.{name}" not in names] == []


@pytest.mark.parametrize("module", WITHOUT_ALL)
def test_what_plug_ins_and_clients_use_is_in_the_reference(module: str, names: set[str]) -> None:
    assert [name for name in WITHOUT_ALL[module] if f"{module}.{name}" not in names] == []


def test_the_search_needs_no_server(site: Path) -> None:
    """The index is a script, which a browser loads from disk; summaries, which it would have to fetch, are off."""
    index = (site / "searchindex.js").read_text()
    assert index.startswith("Search.setIndex(") and "docs/solving" in index
    options = (site / "_static" / "documentation_options.js").read_text()
    assert "SHOW_SEARCH_SUMMARY: false" in options


def documented(module: str) -> Iterator[tuple[str, Any, str]]:
    """(name, object, docstring) of the public names of a module, and of the public members of classes."""
    if module in NEED_TORCH:
        pytest.importorskip("torch")
    loaded = importlib.import_module(module)
    for name in WITHOUT_ALL.get(module) or loaded.__all__:
        value = getattr(loaded, name)
        if not inspect.isclass(value):
            if inspect.isroutine(value):
                yield name, value, inspect.getdoc(value) or ""
            continue
        yield name, value, inspect.cleandoc(value.__doc__ or "")
        for member, of in vars(value).items():
            function = of.fget if isinstance(of, property) else getattr(of, "__func__", of)
            if inspect.isfunction(function) and not member.startswith("_") and function.__doc__:
                yield f"{name}.{member}", function, inspect.getdoc(function) or ""


def parsed(text: str) -> tuple[str, dict[str, list[str]]]:
    """The prose before the sections, and the names of the entries of each section."""
    parts = re.split(rf"^({'|'.join(SECTIONS)}):\n", text, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    return parts[0], {name: re.findall(r"^    (\w+): ", body, re.MULTILINE) for name, body in sections.items()}


@pytest.mark.parametrize("module", [*PUBLIC, *WITHOUT_ALL])
def test_docstrings_have_one_layout(module: str) -> None:
    """Sections in one order, errors under Raises, and no name of a parameter, field or error that does not exist."""
    for name, value, text in documented(module):
        prose, sections = parsed(text)
        assert list(sections) == [one for one in SECTIONS if one in sections], name
        assert not re.search(r"\bRaises \w+Error\b", prose), f"{name}: errors belong under Raises"
        assert not re.search(r"^\w+(, \w+)*  +\S", prose, re.MULTILINE), f"{name}: columns belong under Args"
        assert set(sections.get("Args", ())) <= set(inspect.signature(value).parameters), name
        assert set(sections.get("Attributes", ())) <= set(getattr(value, "__annotations__", ())), name
        assert all(hasattr(errors, error) for error in sections.get("Raises", ())), name
