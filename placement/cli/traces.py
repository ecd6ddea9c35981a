"""`placement traces`: describe, split, merge and make traces."""

from __future__ import annotations

import typer

app = typer.Typer(help="Describe, split, merge and make traces.", no_args_is_help=True)
