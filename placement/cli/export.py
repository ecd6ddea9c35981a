"""`placement export`."""

from __future__ import annotations


def export_command() -> None:
    """Not there yet."""
