"""What `placement solve --by` takes and shows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from placement.cli.outputs import output_folder
from placement.cli.shared import stdout_console
from placement.core.choices import CLASSES

if TYPE_CHECKING:
    from placement.pipeline.by_class_solution import ByClass

By = Annotated[
    str | None,
    typer.Option(help=f"Also a map for each class of traffic, by {', '.join(CLASSES)}, and what that gains."),
]
MapsOut = Annotated[Path | None, output_folder(help="Folder for the placement files of the classes; needs --by.")]


def show_classes(answer: ByClass) -> None:
    """The table of classes, and what it means."""
    from placement.report.classes.classes_report import class_table, terminal_class_table

    console = stdout_console()
    console.print(terminal_class_table(answer))
    for sentence in class_table(answer).said:
        console.print(sentence, highlight=False, markup=False)
