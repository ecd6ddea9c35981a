"""`placement by-class`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from placement.cli.option_groups import ClusterOptions, RunOptions, SearchOptions
from placement.cli.outputs import output_file, output_folder
from placement.cli.shared import Traces, open_any
from placement.core.choices import CLASSES


def by_class_command(
    traces: Traces,
    by: Annotated[str, typer.Option(help=f"What tells the classes apart: {', '.join(CLASSES)}.")],
    shape: ClusterOptions,
    search: SearchOptions,
    run: RunOptions,
    output: Annotated[Path, output_file("-o", "--output", help="Placement file to write.")] = Path("placement.json"),
    maps_out: Annotated[Path | None, output_folder(help="Folder for the placement files of the classes.")] = None,
) -> None:
    """Find a placement for all traffic and one for each class of traffic, and what the latter gain."""
    from placement.cli.written import finish
    from placement.pipeline.by_class import solve_by
    from placement.pipeline.documents.by_class_files import by_class_document, save_classes
    from placement.report.classes.classes_report import class_table, terminal_class_table

    source = open_any(traces, run.top_k)
    cluster = shape.of(source.model.num_experts)
    with run.running() as how:
        answer = solve_by(source, cluster, search.of(), by=by, **how)
    if maps_out is not None:
        save_classes(maps_out, answer)
    finish(
        answer.solution,
        output=output,
        run=run,
        document=by_class_document(answer),
        tables=[terminal_class_table(answer), *class_table(answer).said],
        also=[maps_out],
        by_class=answer,
    )
