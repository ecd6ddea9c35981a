"""The documentation is true: its commands run, its links lead somewhere, nothing that users can ask for is missing."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import typer

from placement.cli import app
from placement.core.cluster import Cluster
from placement.cost.choices import REPLICA_CHOICES
from placement.documents.cluster_yaml import ClusterFile
from placement.exporters import EXPORTERS
from placement.readers import READERS
from placement.runtime.transport import TRANSPORTS
from placement.solvers import SOLVERS
from placement.traces.synthetic.presets import PRESETS

REPOSITORY = Path(__file__).parents[1]
PAGES = [path for path in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))) if path.exists()]
OF_A_SERVER = ("service.md", "deploy.md")  # tests/service/test_service_docs.py runs these beside a server
RUN = [path for path in PAGES if path.name not in OF_A_SERVER]
READ = [*PAGES, *(path for name in ("CONTRIBUTING.md", "examples/README.md") if (path := REPOSITORY / name).exists())]

SHELLS = ("console", "sh", "bash")
BLOCK = re.compile(r"(?:<!--\s*exit\s+(\d+)\s*-->\s*)?^```([\w-]*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(?:\$ )?(?:[\w./$()-]*/)?(placement|make) +(.*)$")
ROOMS = ("placement", "api", "tests", "examples", "docs", "benchmarks")
FORBIDDEN = ("../shared", "/work/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command of a document: its words, where stdout goes, the promised exit code and the output shown below it."""

    words: list[str]
    to_file: str | None
    code: int
    output: str

    def __str__(self) -> str:
        return shlex.join(self.words)


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that has nothing but the examples, and what engines recorded in `recordings`."""
    shutil.copytree(REPOSITORY / "examples", tmp_path / "examples")
    shutil.copytree(REPOSITORY / "tests" / "golden" / "readers", tmp_path / "recordings")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def blocks(text: str) -> Iterator[tuple[int, str, str]]:
    """(promised exit code, language, content) of every fenced block."""
    for code, language, content in BLOCK.findall(text):
        yield int(code or 0), language, content


def prose(path: Path) -> str:
    """The text outside of fenced blocks."""
    return BLOCK.sub("", path.read_text())


def commands(path: Path) -> Iterator[Command]:
    for code, language, content in blocks(path.read_text()):
        if language not in SHELLS:
            continue
        lines = content.replace("\\\n", " ").splitlines()
        starts = [number for number, line in enumerate(lines) if COMMAND.match(line)]
        for number, stop in zip(starts, [*starts[1:], len(lines)], strict=True):
            found = COMMAND.match(lines[number])
            assert found is not None
            yield parse(f"{found[1]} {found[2]}", code, "\n".join(lines[number + 1 : stop]).strip())


def parse(line: str, code: int, output: str) -> Command:
    """Understands quotes, comments, `> FILE` and pipes, whose first command alone is run."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    words = list(lexer)
    to_file = None
    for number, word in enumerate(words):
        if set(word) <= set("();<>|&"):
            assert word in (">", "|"), f"{line!r}: {word!r} is not understood by this test"
            to_file = words[number + 1] if word == ">" else None
            words = words[:number]
            break
    return Command(words=words, to_file=to_file, code=code, output=output)


def make_targets() -> dict[str, list[str]]:
    """Recipe lines of every target of the Makefile."""
    targets: dict[str, list[str]] = {}
    name = None
    for line in (REPOSITORY / "Makefile").read_text().splitlines():
        if line.startswith("\t"):
            if name is not None:
                targets[name].append(line.strip().lstrip("@"))
        elif found := re.match(r"([\w-]+):(?!=)", line):
            name = found[1]
            targets[name] = []
        elif line.strip():
            name = None
    return targets


@pytest.mark.parametrize("path", RUN, ids=name_of)
def test_the_commands_of_a_document_run(path: Path, sandbox: Path, run_cli: Callable[..., Any]) -> None:
    """In order, in one folder; a promised failure also prints what the document shows, `...` standing for anything.

    A table that the document shows is what its commands print, cell for cell. The Python of docs/grouping.md runs after
    its commands, on what they left.
    """
    printed = ""
    for command in commands(path):
        if command.words[0] == "make":
            printed += run_make(command, sandbox, run_cli)
            continue
        result = run_cli(*command.words[1:])
        assert result.code == command.code, f"{command}: exit {result.code}\n{result.stderr}"
        printed += result.stdout
        if command.to_file is not None:
            (sandbox / command.to_file).write_text(result.stdout)
        if command.code:
            shown = ".*".join(re.escape(" ".join(part.split())) for part in command.output.split("..."))
            assert re.search(shown, " ".join(result.stderr.split())), f"{command}: {result.stderr}"
    for _, _, content in blocks(path.read_text()):
        if re.search("^─+$", content, re.MULTILINE):
            assert "\n".join(cells(content)) in "\n".join(cells(printed)), f"no command prints this table:\n{content}"
    if path.name == "grouping.md":
        for _, language, content in blocks(path.read_text()):
            if language == "python":
                exec(compile(content, path.name, "exec"), {})  # noqa: S102  # the documents are ours


def cells(table: str) -> list[str]:
    """The lines of a table that are not empty, with one blank between cells, and as many dashes in every rule."""
    return [re.sub("─+", "─", " ".join(line.split())) for line in table.splitlines() if line.strip()]


def run_make(command: Command, sandbox: Path, run_cli: Callable[..., Any]) -> str:
    """Targets must exist; of `make demo` the recipe is run, because other commands read what it leaves.

    Returns:
        What the recipe printed.
    """
    printed = ""
    targets = make_targets()
    for target in command.words[1:]:
        assert target in targets, f"{command}: the Makefile has no target {target}"
    if "demo" in command.words[1:]:
        (sandbox / "demo").mkdir(exist_ok=True)
        for line in targets["demo"]:
            if found := COMMAND.match(line):
                result = run_cli(*parse(f"{found[1]} {found[2]}", 0, "").words[1:])
                assert result.code == 0, f"make demo: exit {result.code}\n{result.stderr}"
                printed += result.stdout
    return printed


def test_the_demo_is_understood() -> None:
    """Protects the reading of the Makefile above: without it `make demo` would be skipped in silence."""
    assert any(COMMAND.match(line) for line in make_targets()["demo"])


def cli_commands(command: Any, words: tuple[str, ...] = ("placement",)) -> Iterator[tuple[str, list[str]]]:
    """(command, its options) for the whole tree of commands."""
    options = [name for param in command.params if param.param_type_name == "option" for name in param.opts]
    options += [name for param in command.params for name in param.secondary_opts]
    yield " ".join(words), options
    for name, inner in getattr(command, "commands", {}).items():
        yield from cli_commands(inner, (*words, name))


@pytest.mark.parametrize(("command", "options"), list(cli_commands(typer.main.get_command(app))))
def test_every_command_and_option_is_documented(command: str, options: list[str]) -> None:
    """`placement traces ...` in docs/traces.md, the service in docs/service.md, the proxy in docs/proxy.md, names in
    docs/names.md, what Envoy asks in docs/routing.md, those of the cluster file in docs/cluster.md, the others in
    docs/solving.md."""
    pages = {
        "placement traces": "traces.md",
        "placement cluster": "cluster.md",
        "placement calibrate": "cluster.md",
        "placement serve": "service.md",
        "placement token": "service.md",
        "placement route": "proxy.md",
        "placement envoy": "routing.md",
        "placement pull": "names.md",
        "placement names": "names.md",
        "placement backup": "service.md",
        "placement restore": "service.md",
    }
    page = next((page for start, page in pages.items() if command.startswith(start)), "solving.md")
    text = (REPOSITORY / "docs" / page).read_text()
    assert command in text
    missing = [name for name in options if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)]
    assert not missing, f"docs/{page} says nothing about {', '.join(missing)} of {command}"


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("solving.md", SOLVERS),
        ("solving.md", EXPORTERS),
        ("solving.md", REPLICA_CHOICES),
        ("metrics.md", REPLICA_CHOICES),
        ("traces.md", PRESETS),
        ("traces.md", READERS),
        ("engines.md", READERS),
        ("runtime.md", TRANSPORTS),
    ],
    ids=[
        "solvers",
        "exporters",
        "replica choices of solving",
        "replica choices",
        "presets",
        "readers",
        "readers of engines",
        "transports of the runtime",
    ],
)
def test_every_registered_name_is_documented(page: str, names: dict[str, object]) -> None:
    """What can be chosen by name is explained under that name."""
    text = (REPOSITORY / "docs" / page).read_text()
    assert not [name for name in names if f"`{name}`" not in text]


def test_presets_are_documented_with_their_sizes() -> None:
    """The table of presets in docs/traces.md."""
    text = (REPOSITORY / "docs" / "traces.md").read_text()
    for name, shape in PRESETS.items():
        model = shape.model
        assert f"| `{name}` | {model.num_layers} | {model.num_experts} | {model.top_k} |" in text


def test_the_cluster_file_is_documented_with_its_defaults() -> None:
    """Every key of cluster.yaml has a row in docs/cluster.md, whose last cell is the default that the code has."""
    text = (REPOSITORY / "docs" / "cluster.md").read_text()
    defaults = {field.name: field.default for field in fields(Cluster)}
    for key in ClusterFile.model_fields:
        row = re.search(rf"^\| `{key}` \|.*\| (.*) \|$", text, re.MULTILINE)
        assert row is not None, key
        default = defaults.get(key)
        if isinstance(default, int | float):
            assert row[1].split(" (")[0] == f"{default:,.0f}", key
    assert (REPOSITORY / "examples" / "cluster.yaml").read_text() in [content for _, _, content in blocks(text)]


def test_the_architecture_has_the_layers_of_the_import_contract() -> None:
    """The picture in docs/architecture.md names the packages in the order of the contract of pyproject.toml."""
    contract = re.search(r"^layers = \[(.*?)^\]", (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert contract is not None
    picture = next(content for _, _, content in blocks((REPOSITORY / "docs" / "architecture.md").read_text()))
    assert [re.split(" {2,}", line)[0] for line in picture.splitlines()] == re.findall(r'"(.*)"', contract[1])


@pytest.mark.parametrize("path", READ, ids=name_of)
def test_links_and_paths_of_a_document_exist(path: Path) -> None:
    """Relative links, their anchors, and files of this repository that are named in code letters."""
    text = prose(path)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.is_relative_to(REPOSITORY), f"{target} leads out of the repository"
        assert file.exists(), f"{target} does not exist"
        assert not anchor or anchor in anchors(file), f"{target}: no such heading"
    for named in re.findall(rf"`((?:{'|'.join(ROOMS)})/[\w./-]*)`", text):
        assert (REPOSITORY / named).exists(), f"{named} does not exist"


def anchors(path: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", READ, ids=name_of)
def test_a_document_names_nothing_outside_of_the_project(path: Path) -> None:
    """The project stands alone."""
    text = path.read_text()
    assert not [word for word in FORBIDDEN if word in text]
