"""What maps cost in steps of so many tokens, as a table for the terminal; the table fits in 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from placement.cost.steps.figures import StepFigures
from placement.cost.steps.replay import StepCost
from placement.errors import printable
from placement.report.drawing.numbers import number, plural
from placement.report.drawing.table import table_of

NAME_WIDTH = 16
UNIFORM = "uniform router"
HEADS = (
    "busiest\nGPU\nmean, p99",
    "\nbest\nsplit",
    "\nlink\nimb.",
    "\nbusiest\nsends",
    "\nstep ms\nmean, p99",
    "\n\nmostly",
)


def step_table(names: Sequence[str], costs: Sequence[Sequence[StepCost]]) -> Table:
    """A section for each phase and size of steps, in which each map has a row, and the uniform router the last."""
    table = table_of("\n\nmap", *HEADS)
    left_out: dict[str, list[str]] = {}
    for rows in zip(*costs, strict=True):
        first = rows[0]
        steps = " or ".join(dict.fromkeys(plural(row.steps, "step") for row in rows))
        table.add_row(Text(f"{first.phase}, {first.tokens_per_gpu:,} a GPU", style="italic"), steps)
        for name, row in zip(names, rows, strict=True):
            table.add_row(_name(name), *step_cells(row.figures), style="" if row.steps else "dim")
        for uniform in dict.fromkeys(row.uniform for row in rows):
            table.add_row(_name(UNIFORM), *step_cells(uniform), style="dim")
        table.add_section()
        told = left_out.setdefault(first.phase, [])
        told += dict.fromkeys(plural(row.left_out, "token") for row in rows)
    told = [f"{', '.join(tokens)} of {phase}" for phase, tokens in left_out.items()]
    table.caption = Text(f"left out, as they fill no step: {'; '.join(told)}", style="dim")
    return table


def step_cells(figures: StepFigures | None) -> list[str]:
    """Under HEADS."""
    if figures is None:
        return [number(None)] * len(HEADS)
    gpu = f"{number(figures.busiest_gpu.mean)}, {number(figures.busiest_gpu.p99)}"
    step = f"{number(figures.step_us.mean / 1e3)}, {number(figures.step_us.p99 / 1e3)}"
    means = [number(over.mean) for over in (figures.best_split, figures.busiest_link, figures.busiest_sends)]
    return [gpu, *means, step, figures.governed_by.title]


def _name(name: str) -> Text:
    """The end of a long name is what tells one file from another."""
    shown = printable(name)
    return Text(f" {shown if len(shown) < NAME_WIDTH else f'…{shown[2 - NAME_WIDTH :]}'}")
