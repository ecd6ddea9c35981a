"""`placement export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from placement.exporters import EXPORTERS, get_exporter
from placement.files import write_atomic
from placement.placement_json import load_placement


def export_command(
    placement: Annotated[Path, typer.Argument(help="Placement file.")],
    to: Annotated[str, typer.Option("--to", help=f"Format: {', '.join(EXPORTERS)}.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")],
) -> None:
    """Write a placement as the file that an engine loads."""
    exporter = get_exporter(to)
    export = exporter.export(load_placement(placement)[0])
    write_atomic(output, export.content)
    typer.echo(f"wrote {output}")
    for hint in export.hints:
        typer.echo(f"  {hint.replace('FILE', str(output))}")
