"""The command line answers at once: what a command needs for its work is imported when the work begins."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("numpy", "scipy", "numba", "ortools", "networkx", "rich", "jinja2", "matplotlib", "torch", "sqlalchemy")

ALL_HELP = f"""
import contextlib, io, sys
import typer
from placement.cli import app

def helps(command, words):
    yield words
    for name, inner in getattr(command, "commands", {{}}).items():
        yield from helps(inner, [*words, name])

shown = 0
for words in helps(typer.main.get_command(app), []):
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.suppress(SystemExit):
        app(args=[*words, "--help"], prog_name="placement")
    assert "Usage: placement" in output.getvalue(), words
    shown += 1
print(shown, *sorted(set(sys.modules) & set({HEAVY!r})))
"""


def test_help_of_every_command_imports_nothing_heavy() -> None:
    """NumPy alone takes longer to import than help takes to print."""
    done = subprocess.run([sys.executable, "-c", ALL_HELP], capture_output=True, text=True, check=True)
    shown, *imported = done.stdout.split()
    assert int(shown) > 15
    assert not imported


def test_the_library_is_imported_by_name() -> None:
    """`import placement` loads nothing heavy, and each public name is there when it is asked for."""
    code = "import sys, placement; print(*(set(sys.modules) & {'numpy', 'numba'})); print(placement.Cluster.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["Cluster"]
