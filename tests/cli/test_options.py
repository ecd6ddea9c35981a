"""Options in groups and panels; what was renamed is refused with its new name."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from placement.cli import app
from placement.cli.executor import parse_workers
from placement.cli.renamed import COMMANDS, OPTIONS
from placement.errors import OptionError

CLICK = typer.main.get_command(app)


def options_of(name: str) -> dict[str, Any]:
    command = CLICK.commands[name]  # type: ignore[attr-defined]
    return {parameter.opts[-1]: parameter for parameter in command.params if parameter.param_type_name == "option"}


def test_solve_has_at_most_25_options() -> None:
    """A command that grows beyond what one page of help holds is two commands."""
    assert len(options_of("solve")) <= 25


@pytest.mark.parametrize("command", ["solve", "front", "by-class", "robust", "group"])
def test_help_has_a_panel_for_each_topic(command: str, run_cli: Any) -> None:
    """Arguments and outputs first, then the cluster; every option stands in one panel."""
    text = run_cli(command, "--help").stdout
    panels = [line[:-1] for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert panels[:4] == ["Arguments", "Options", "Cluster", "Goal"]
    for name in options_of(command):
        assert text.count(f" {name} ") + text.count(f" {name}\n") >= 1, name


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_a_renamed_option_is_refused_with_its_new_name(command: str, option: str, run_cli: Any) -> None:
    """One line, exit code 2; the new command and the new option exist."""
    words = (command or "solve", "no-such-trace", option, "1")
    refused = run_cli(*words)
    new = OPTIONS[command, option]
    assert refused.code == 2 and refused.stderr == (
        f"placement: error: {option} of `placement {words[0]}` was renamed: use {new}\n"
    )
    known = {name for one in CLICK.commands for name in (one, *options_of_all(one))}  # type: ignore[attr-defined]
    named = [word.strip("`,") for word in new.split() if word.strip("`").startswith("--")]
    assert all(name in known for name in named), named


def options_of_all(name: str) -> list[str]:
    command = CLICK.commands[name]  # type: ignore[attr-defined]
    return [option for parameter in command.params for option in parameter.opts]


@pytest.mark.parametrize(("group", "command"), COMMANDS)
def test_a_renamed_command_is_refused_with_its_new_name(group: str, command: str, run_cli: Any) -> None:
    refused = run_cli(group, command, "no-such-trace")
    assert refused.code == 2 and refused.stderr.endswith(f"was renamed: use `{COMMANDS[group, command]}`\n")


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        (None, (None, None)),
        ("3", (3, None)),
        ("ray", (None, "ray")),
        ("8@ray", (8, "ray")),
        ("head-1.local:6379", (None, "head-1.local:6379")),
        ("2@10.0.0.1:6379", (2, "10.0.0.1:6379")),
    ],
)
def test_who_runs_the_tasks(text: str | None, parsed: tuple[int | None, str | None]) -> None:
    assert parse_workers(text) == parsed


@pytest.mark.parametrize("text", ["", "0", "-1", "0@ray", "ray@8", "two", "8@", "@ray", "1.5", "9999999"])
def test_what_runs_no_tasks_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="number of threads"):
        parse_workers(text)
