"""`placement evaluate`."""

from __future__ import annotations


def evaluate_command() -> None:
    """Not there yet."""
