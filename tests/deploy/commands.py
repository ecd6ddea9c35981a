"""The commands that a manifest names."""

from __future__ import annotations

from typing import Any

from typer.main import get_command

from placement.cli import app


def check_command(words: list[str]) -> None:
    """The commands and options are there."""
    command: Any = get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    known = {name for param in command.params for name in param.opts}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known
