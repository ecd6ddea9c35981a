"""What `advise` says of steps: sentences, and a table for the terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from placement.analysis.advise.map_cost import LINEAR, LITTLE, SOLVED
from placement.analysis.advise.steps import Steps, StepSize
from placement.report.drawing.numbers import number, percent, plural
from placement.report.drawing.table import table_of
from placement.report.steps.step_table import HEADS, UNIFORM, step_cells


def step_words(found: Steps) -> list[str]:
    """Phase by phase: where the gain holds, where chance alone leaves nothing to balance, and what time goes to."""
    told = []
    for phase in dict.fromkeys(one.phase for one in found.sizes):
        mine = [one for one in found.sizes if one.phase == phase]
        told.append(_gain(phase, mine))
        told.append(_chance([one for one in mine if one.is_floor], mine[0]))
        told.append(_largest(mine))
    told.append("A uniform router draws its experts at random, on a map that spreads them perfectly.")
    return told


def _gain(phase: str, mine: list[StepSize]) -> str:
    gains = [one.gain for one in mine]
    low, high = percent(min(gains)), percent(max(gains))
    saves = f"saves {low if low == high else f'{low} to {high}'} of the modelled step of linear"
    least = [one.tokens_per_gpu for one in mine if one.gain >= LITTLE]
    span = " to ".join(dict.fromkeys(f"{one.tokens_per_gpu:,}" for one in (mine[0], mine[-1])))
    of = f"steps of {span} tokens a GPU the solved map {saves}"
    if len(least) == len(mine):
        return f"Yes in {phase}: in {of}."
    if least:
        return f"In {phase} from {min(least):,} tokens a GPU on: in {of}."
    return f"Hardly in {phase}: in {of}."


def _largest(mine: list[StepSize]) -> str:
    parts = []
    for one in mine[:: max(len(mine) - 1, 1)]:
        figures = one.maps[SOLVED]
        share = percent(figures.terms_us[figures.governed_by] / figures.step_us.mean)
        parts.append(f"a step of {plural(one.tokens_per_gpu, 'token')} a GPU is {figures.governed_by.title} ({share})")
    return f"Under the solved map the largest part of {' and of '.join(parts)}."


def _chance(floors: list[StepSize], smallest: StepSize) -> str:
    if floors:
        last = floors[-1]
        chance, linear = (one.busiest_gpu.mean for one in (last.uniform, last.maps[LINEAR]))
        return (
            f"With {plural(last.tokens_per_gpu, 'token')} a GPU or fewer no map makes such steps more even, because "
            f"the busiest GPU of a uniform router has {number(chance)} of the mean load already, of {number(linear)} "
            f"under linear."
        )
    linear, solved = (smallest.maps[name].busiest_gpu.mean for name in (LINEAR, SOLVED))
    return (
        f"With {plural(smallest.tokens_per_gpu, 'token')} a GPU the busiest GPU has {number(linear)} of the mean load "
        f"under linear and {number(solved)} solved; that of a uniform router has "
        f"{number(smallest.uniform.busiest_gpu.mean)}."
    )


def steps_table(found: Steps) -> Table:
    """A section for each phase and size."""
    table = table_of("\n\nmap", *HEADS)
    for one in found.sizes:
        title = Text(f"{one.phase}, {one.tokens_per_gpu:,} a GPU", style="italic")
        table.add_row(title, plural(one.steps, "step"))
        for name, figures in one.maps.items():
            table.add_row(f" {name}", *step_cells(figures), style="bold" if name == SOLVED else "")
        table.add_row(f" {UNIFORM}", *step_cells(one.uniform), style="dim")
        table.add_section()
    return table
