"""What `placement solve` writes and shows of an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from placement.cli.by_class import show_classes
from placement.cli.group import show_grouping
from placement.cli.shared import stdout_console
from placement.cli.solve_checks import Outputs
from placement.documents.placement_json import document_bytes, save_placement
from placement.grouping.grouping_json import save_grouping
from placement.pipeline.by_class_solution import ByClass
from placement.pipeline.documents.by_class_files import by_class_document, save_classes
from placement.pipeline.documents.front_files import PLOT_FILE, save_front
from placement.pipeline.documents.grouping_document import grouping_document
from placement.pipeline.front_solution import Front
from placement.pipeline.grouped_solution import GroupedSolution
from placement.pipeline.solution import Solution, solution_document
from placement.report.front.front_report import front_png, front_table
from placement.report.solution.migration_table import migration_line
from placement.report.solution.part_tables import terminal_part_table
from placement.report.solution.solution_tables import comparison_table, headline
from placement.support.atomic_files import write_atomic


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A solution, and what was asked for besides."""

    solution: Solution
    grouped: GroupedSolution | None = None
    front: Front | None = None
    classes: ByClass | None = None

    def document(self) -> dict[str, Any]:
        return solution_document(self.solution) if self.classes is None else by_class_document(self.classes)

    def write(self, outputs: Outputs) -> None:
        if self.front is not None and outputs.pareto is not None:
            save_front(outputs.pareto, self.front)
            write_atomic(outputs.pareto / PLOT_FILE, front_png(self.front))
        save_placement(outputs.placement, self.document())
        if self.grouped is not None and outputs.grouping is not None:
            save_grouping(outputs.grouping, grouping_document(self.grouped))
        if self.classes is not None and outputs.maps is not None:
            save_classes(outputs.maps, self.classes)
        plan = self.solution.migration()
        if plan is not None and outputs.migration is not None:
            write_atomic(outputs.migration, document_bytes(plan.document(), "copies"))
        if outputs.report is not None:
            from placement.report.solution.solution_page import report_html  # jinja2 is loaded only for a report

            page = report_html(self.solution, grouped=self.grouped, by_class=self.classes)
            write_atomic(outputs.report, page)

    def show(self) -> None:
        """The tables and the sentence of the result, on stdout."""
        console = stdout_console()
        console.print(comparison_table(self.solution))
        if self.grouped is not None:
            show_grouping(self.grouped)
        if self.classes is not None:
            show_classes(self.classes)
        if self.front is not None:
            console.print(front_table(self.front))
        by_part = terminal_part_table(self.solution)
        if by_part is not None:
            console.print(by_part)
        console.print(headline(self.solution), highlight=False, markup=False)
        plan = self.solution.migration()
        if plan is not None:
            console.print(migration_line(plan), highlight=False, markup=False)
