"""The front of sends against imbalance: a table for the terminal, which fits in 80 columns, and a picture."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from placement.cost.evaluation import Evaluation
from placement.pipeline.front_solution import Front, FrontPoint
from placement.report.drawing.numbers import number, percent
from placement.report.drawing.page import CHART_STYLE, style
from placement.report.drawing.svg import Chart
from placement.report.drawing.table import table_of
from placement.report.solution.solution_charts import (
    Spot,
    draw_spots,
    sends_against_imbalance,
    series_of,
    shape_of,
)
from placement.report.solution.summary import REFERENCE, parts

NEAR = 0.045  # labels nearer than this share of the plot's width and height collide
SERIES = {"held-out": "s2", "training": "s6"}


def front_table(front: Front) -> Table:
    """One row a point, the chosen one bold: held-out figures first, then those of training."""
    heads = [
        head
        for side, _ in parts(front.solution)
        for head in (f"{side}\nsends", f"of\n{REFERENCE}'s", "rank imb.\nmean (max)")
    ]
    table = table_of("\nweight", *heads, title="\nfront of sends against rank imbalance")
    table.columns[0].justify = "right"
    for point in front.points:
        sides = [answers for _, answers in parts(point.solution)]
        cells = [cell for answers in sides for cell in _cells(answers[point.solution.result_name], answers[REFERENCE])]
        table.add_row(_name(point), *cells, style="bold" if point is front.chosen else "")
    table.caption = Text(f"means over layers; chosen: {_name(front.chosen)}", style="dim")
    return table


def _name(point: FrontPoint) -> str:
    return f"cap {point.solution.options.max_imbalance:g}" if point.weight is None else f"{point.weight:g}"


def _cells(answer: Evaluation, reference: Evaluation) -> list[str]:
    sends, imbalance = answer.summary()["sends_per_token"], answer.summary()["rank_imbalance"]
    of = reference.summary()["sends_per_token"]
    return [
        number(sends),
        percent(sends / of if of else None),
        f"{number(imbalance['mean'])} ({number(imbalance['max'])})",
    ]


def front_svg(front: Front) -> str:
    """Sends against mean rank imbalance: a line a side, the baselines as marks, points named by their weight."""
    sides = [side for side, _ in parts(front.solution)]
    baselines = [name for name in ("linear", REFERENCE) if name in front.solution.maps]
    fronts = {side: [_mean(point, side) for point in front.points if point.weight is not None] for side in sides}
    spots = [
        Spot(f"{name}, {side}", series, shape, *at, 4, kind)
        for side, kind in reversed(list(zip(sides, ("", "faint"), strict=False)))
        for name, series, shape, points in (
            ("front", SERIES[side], "circle", fronts[side]),
            *((name, series_of(name), shape_of(name), [_mean(front.chosen, side, name)]) for name in baselines),
        )
        for at in points
    ]
    chosen = _mean(front.chosen, sides[0])
    chart = sends_against_imbalance(spots, lowest=chosen[1], width=880, height=560)
    for side in reversed(sides):
        chart.line(SERIES[side], *zip(*fronts[side], strict=True))
    draw_spots(chart, spots)
    chart.mark("s2", "diamond", *chosen, f"chosen: {_name(front.chosen)}", radius=8, kind="mean")
    _label(chart, front, sides[0])
    faint = f", {sides[-1]} faint" if len(sides) > 1 else ""
    marks = [(f"{name}{faint}", series_of(name), shape_of(name)) for name in baselines]
    entries = [*((f"front, {side}", SERIES[side], "circle") for side in sides), *marks]
    chart.legend(entries, [(spot.sends, spot.imbalance) for spot in spots])
    said = ", ".join(
        f"{_name(p)}: {number(_mean(p, sides[0])[0])} at {number(_mean(p, sides[0])[1])}" for p in front.points
    )
    return chart.file(
        f"Sends per token against rank imbalance, {sides[0]} requests, by balance weight: {said}.", style(CHART_STYLE)
    )


def _label(chart: Chart, front: Front, side: str) -> None:
    """The chosen point has its label; of the others those that are not too near to one that has."""
    labelled: list[tuple[float, float]] = []
    for point in sorted(front.points, key=lambda point: point is not front.chosen):
        x, y = _mean(point, side)
        at = chart.x(x), chart.y(y)
        if any(abs(at[0] - x) < NEAR * chart.width and abs(at[1] - y) < NEAR * chart.height for x, y in labelled):
            continue
        labelled.append(at)
        chosen = point is front.chosen
        chart.text(
            at[0] + (2 if chosen else 7), at[1] - (24 if chosen else 6),  # above the marks beside the chosen one
            f"{_name(point)}, chosen" if chosen else _name(point), "start", "label strong" if chosen else "",
        )  # fmt: skip


def _mean(point: FrontPoint, side: str, name: str | None = None) -> tuple[float, float]:
    answer = dict(parts(point.solution))[side][name or point.solution.result_name]
    return float(answer.sends_L.mean()), float(answer.rank_imbalance_L().mean())
