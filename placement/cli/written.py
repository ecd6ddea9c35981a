"""What commands that solve write and show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from placement.cli.option_groups import RunOptions
from placement.cli.shared import print_json, stdout_console
from placement.documents.placement import PlacementFile
from placement.pipeline.solution import Solution, solution_document
from placement.report.solution.migration_table import migration_line
from placement.report.solution.part_tables import terminal_part_table
from placement.report.solution.solution_tables import comparison_table, headline
from placement.support.atomic_files import write_together


def finish(
    solution: Solution,
    *,
    output: Path,
    run: RunOptions,
    document: dict[str, Any] | None = None,
    tables: Sequence[Any] = (),
    also: Sequence[Path | None] = (),
    **sections: Any,
) -> None:
    """Write the placement file and the report; print the tables, or the document as JSON.

    Args:
        document: What the placement file holds; None: the document of the solution.
        tables: What to print after the table of the solution.
        also: Paths that were written before.
        sections: What the report shows beside the solution, by the names of `report_html`.
    """
    document = solution_document(solution) if document is None else document
    contents: dict[Path, bytes | str] = {output: PlacementFile.encode(document)}
    if run.report is not None:
        from placement.report.solution.solution_page import report_html  # jinja2 is loaded only for a report

        contents[run.report] = report_html(solution, **sections)
    write_together(contents)
    if run.json_output:
        print_json(document)
        return
    console = stdout_console()
    console.print(comparison_table(solution))
    for table in tables:
        console.print(table, highlight=False, markup=False)
    by_part = terminal_part_table(solution)
    if by_part is not None:
        console.print(by_part)
    console.print(headline(solution), highlight=False, markup=False)
    plan = solution.migration()
    if plan is not None:
        console.print(migration_line(plan), highlight=False, markup=False)
    written = " and ".join(str(path) for path in (output, *also, run.report) if path is not None)
    console.print(f"wrote {written}", highlight=False, markup=False, soft_wrap=True)
