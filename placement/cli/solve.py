"""`placement solve`."""

from __future__ import annotations


def solve_command() -> None:
    """Not there yet."""
