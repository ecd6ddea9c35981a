"""What a command is to write is checked before its input is read, for every output of every command there is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer

from placement.cli import app

ABSENT = "no-such-input"
# parameters of commands that name what is read; a path that is none of them must be declared as an output
INPUTS = {
    *(
        "traces",
        "fitted_on",
        "load",
        "recording",
        "file",
        "folder",
        "checkpoint",
        "placement",
        "times",
        "maps",
        "map_file",
        "like",
        "model",
        "tokenizer",
        "backend",
        "endpoint",
        "backup",
    ),
    *("current", "new", "cluster", "grouping", "token_file", "traces_folder", "scope", "traces_store"),
    "data",  # the folder of the service: read and written, made at its start
}
MADE_WITH_PARENTS = {"--front-out", "--maps-out", "apply -o", "watch -o", "traces count -o", "pull -o"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One of a command: its option, or "" for an argument; whether it is an output."""

    name: str
    option: str
    required: bool
    output: bool
    a_path: bool
    number: bool

    def words(self, value: object) -> list[str]:
        return [self.option, str(value)] if self.option else [str(value)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    words: tuple[str, ...]
    parameters: tuple[Parameter, ...]

    @property
    def outputs(self) -> list[Parameter]:
        return [one for one in self.parameters if one.output]

    def line(self, *given: tuple[Parameter, object]) -> list[str]:
        """The command with these values, and of the other required parameters values of no meaning."""
        values: dict[str, object] = {one.name: value for one, value in given}
        words = list(self.words)
        for one in self.parameters:
            if one.name in values:
                words += one.words(values[one.name])
            elif one.required:
                words += one.words(2 if one.number else ABSENT)
        return words


def leaves(command: Any, words: tuple[str, ...] = ()) -> Iterator[Command]:
    for name, inner in getattr(command, "commands", {}).items():
        yield from leaves(inner, (*words, name))
    if not hasattr(command, "commands"):
        hints = get_type_hints(command.callback, include_extras=True)
        named = [one for one in command.params if one.name in hints]
        yield Command(words=words, parameters=tuple(parameter(one, hints[one.name]) for one in named))


def parameter(declared: Any, hint: Any) -> Parameter:
    kinds = {hint, *get_args(hint), *(inner for one in get_args(hint) for inner in get_args(one))}
    callbacks = [getattr(one, "callback", None) for one in getattr(hint, "__metadata__", ())]
    return Parameter(
        name=declared.name,
        option=min(declared.opts, key=len) if declared.param_type_name == "option" else "",
        required=declared.required,
        output=any(getattr(one, "__name__", "") == "output_callback" for one in callbacks),
        a_path=Path in kinds or list[str] in kinds,
        number=int in kinds,
    )


COMMANDS = list(leaves(typer.main.get_command(app)))
OUTPUTS = [
    pytest.param(command, one, id=" ".join((*command.words, one.option or one.name)))
    for command in COMMANDS
    for one in command.outputs
]


def everything(folder: Path) -> set[tuple[str, bytes]]:
    return {(str(path.relative_to(folder)), path.read_bytes() if path.is_file() else b"") for path in folder.rglob("*")}


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in, with a file and a folder that is not empty."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "precious").write_text("1")
    (tmp_path / "file").write_text("2")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(run_cli: Any, line: list[str], told: str) -> None:
    """Exit 2 with one line that tells this, and nothing else is in the folder than before."""
    here = Path.cwd()
    before = everything(here)
    result = run_cli(*line)
    assert result.code == 2, (line, result)
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1 and told in result.stderr, (line, result.stderr)
    assert everything(here) == before


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command.words))
def test_every_path_is_declared_as_what_it_is(command: Command) -> None:
    """An output of a new command that is declared as any other path would be found bad only after the work."""
    unknown = [one.name for one in command.parameters if one.a_path and not one.output and one.name not in INPUTS]
    assert not unknown, "declare it with placement/cli/outputs.py, or name it in INPUTS"
    assert not [one.name for one in command.outputs if one.name in INPUTS]


def test_the_tree_of_commands_is_walked() -> None:
    """Protects the walk above: without outputs the other tests would pass for nothing."""
    found = {(" ".join(command.words), one.name) for command in COMMANDS for one in command.outputs}
    assert {("solve", "report"), ("by-class", "maps_out"), ("traces synth", "output"), ("watch", "output")} < found


@pytest.mark.parametrize(("command", "output"), OUTPUTS)
def test_a_bad_output_is_refused_before_the_input_is_read(
    command: Command, output: Parameter, inside: Path, run_cli: Any
) -> None:
    """The input does not even exist, yet the output is what is told. No file is left of the trial."""
    line = " ".join((*command.words, output.option))
    bad = ["file/x", "file/x.npz", f"{'x' * 240}", f"taken/{'x' * 300}"]
    if output.option not in MADE_WITH_PARENTS and line not in MADE_WITH_PARENTS:
        bad += ["missing/x", "missing/x.npz", "taken"]
    for path in bad:
        refused(run_cli, command.line((output, path)), path)


@pytest.mark.parametrize(("command", "output"), OUTPUTS)
def test_a_good_output_is_not_refused(command: Command, output: Parameter, inside: Path, run_cli: Any) -> None:
    """Protects the test above: with an output that can be written another thing is told, and nothing is written."""
    result = run_cli(*command.line((output, "new.json")))
    assert result.code != 0 and "new.json" not in result.stderr.replace(".flags.txt", ""), result.stderr
    assert not [path for path in inside.rglob(".*")]


@pytest.mark.parametrize("command", [one for one in COMMANDS if len(one.outputs) > 1], ids=lambda one: one.words[-1])
def test_two_outputs_of_one_path_are_refused(command: Command, inside: Path, run_cli: Any) -> None:
    """The later one would overwrite the other, or fail on it; the same path written otherwise is the same path."""
    for one, other in combinations(command.outputs, 2):
        refused(run_cli, command.line((one, "a.json"), (other, "taken/../a.json")), "are both")


def test_a_file_in_the_folder_of_another_output_is_refused(inside: Path, run_cli: Any) -> None:
    """A front or maps of classes could have a file of that name."""
    refused(run_cli, ["front", ABSENT, "--front-out", "taken", "-o", "taken/placement.json"], "overlap")


@pytest.mark.parametrize(("command", "output"), OUTPUTS)
def test_an_output_that_is_an_input_is_refused(command: Command, output: Parameter, inside: Path, run_cli: Any) -> None:
    """Under its own name, by a link, and as a file of a folder that is written to; the input stays as it was."""
    os.link("file", "hard")
    Path("soft").symlink_to("file")
    inputs = [one for one in command.parameters if one.a_path and not one.output]
    for one in inputs:
        for read, written in (("file", "file"), ("file", "hard"), ("file", "soft"), ("taken", "taken")):
            result = run_cli(*command.line((one, read), (output, written)))
            assert result.code == 2 and written in result.stderr, (one, result)
            assert any(told in result.stderr for told in ("would overwrite the input", "cannot write", "exists and is"))
            assert len(result.stderr.splitlines()) == 1
        if output.option not in ("--front-out", "--maps-out"):
            continue
        refused(run_cli, command.line((one, "taken/precious"), (output, "taken")), "would overwrite the input")
    assert Path("file").read_text() == "2"


def test_what_watch_follows_is_not_overwritten(inside: Path, run_cli: Any) -> None:
    """Proposals are numbered from 1 in each run: a map in use that lies among them would be replaced."""
    for folder, current, output in (
        ("taken", "file", "taken"),
        ("taken", "file", "."),
        ("x", "taken/precious", "taken"),
    ):
        refused(run_cli, ["watch", folder, "--from", current, "-o", output], "would overwrite the input")


def test_a_device_is_not_replaced(inside: Path, run_cli: Any) -> None:
    """Writing renames a file over the path: `-o /dev/null` would remove the device for all of the machine."""
    os.mkfifo("pipe")
    refused(run_cli, ["solve", ABSENT, "-o", "pipe"], "device or pipe")
    refused(run_cli, ["solve", ABSENT, "-o", os.devnull], "device or pipe")


def test_the_flags_beside_an_export_are_checked_too(inside: Path, run_cli: Any) -> None:
    """`export` writes two files; the second must not fail after the first."""
    Path("map.json.flags.txt").mkdir()
    refused(run_cli, ["export", ABSENT, "--to", "sglang", "-o", "map.json"], "map.json.flags.txt")
