"""The front of sends against imbalance: a table for the terminal, which fits in 80 columns, and a plot."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from placement.cost.evaluation import Evaluation
from placement.pipeline.front_solution import Front, FrontPoint
from placement.report.drawing.numbers import number, percent
from placement.report.solution.summary import REFERENCE, parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT, CHOSEN = "#1f5fa8", "#9db9d8", "#0b2f57"
NEAR = 0.045  # of the width and height of the plot
BASELINE_MARKS = {"linear": ("o", "#777777"), "eplb": ("s", "#c05a1c")}


def front_table(front: Front) -> Table:
    """One row a point, the chosen one bold: held-out figures first, then those of training."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    table.title = Text("\nfront of sends against rank imbalance", style="bold")
    table.title_justify = table.caption_justify = "left"
    table.add_column("\nweight", justify="right", no_wrap=True)
    for side, _ in parts(front.solution):
        for header in (f"{side}\nsends", f"of\n{REFERENCE}'s", "rank imb.\nmean (max)"):
            table.add_column(header, justify="right", no_wrap=True)
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


def front_png(front: Front) -> bytes:
    """Sends against mean rank imbalance: held out solid, training faint, the baselines as marks, the chosen labelled.

    The same bytes for the same front, whatever the user's matplotlib settings are.
    """
    import matplotlib  # loaded only for a plot
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
        _draw(figure.add_subplot(), front)
        out = BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None})
        return out.getvalue()


def _draw(axes: Axes, front: Front) -> None:
    sides = [side for side, _ in parts(front.solution)]
    for order, side in enumerate(sides):
        ink, alpha = (INK, 1.0) if side == sides[0] else (FAINT, 0.35)
        line = [_mark(point, side) for point in front.points if point.weight is not None]
        axes.plot(*zip(*line, strict=True), "-o", color=ink, markersize=5, label=f"front, {side}", zorder=3 - order)
        for name, (shape, color) in BASELINE_MARKS.items():
            x, y = _mark(front.chosen, side, name)
            axes.plot(x, y, shape, color=color, alpha=alpha, linestyle="none", label=f"{name}, {side}")
    x, y = _mark(front.chosen, sides[0])
    axes.plot(x, y, "D", color=CHOSEN, markersize=8, linestyle="none", zorder=4)
    axes.margins(0.08)
    _label(axes, front, sides[0])
    axes.set_xlabel("sends per token and layer")
    axes.set_ylabel("rank imbalance (max / mean), mean of layers")
    axes.set_title("Sends against rank imbalance; numbers are balance weights", fontsize=11, loc="left")
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8)


def _label(axes: Axes, front: Front, side: str) -> None:
    """The chosen point has its label; of the others those that are not too near to one that has."""
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    labelled: list[tuple[float, float]] = []
    for point in sorted(front.points, key=lambda point: point is not front.chosen):
        x, y = _mark(point, side)
        at = ((x - x0) / (x1 - x0), (y - y0) / (y1 - y0))
        if any(abs(at[0] - other[0]) < NEAR and abs(at[1] - other[1]) < NEAR for other in labelled):
            continue
        labelled.append(at)
        if point is front.chosen:  # away from its neighbours: above and right of a front there is room
            axes.annotate(
                f"{_name(point)}, chosen",
                (x, y),
                (32, 36),
                textcoords="offset points",
                fontsize=10,
                fontweight="bold",
                color=CHOSEN,
                arrowprops={"arrowstyle": "-", "color": CHOSEN, "linewidth": 0.8},
            )
        else:
            axes.annotate(_name(point), (x, y), (6, 5), textcoords="offset points", fontsize=8, color=INK)


def _mark(point: FrontPoint, side: str, name: str | None = None) -> tuple[float, float]:
    answer = dict(parts(point.solution))[side][name or point.solution.result_name]
    return float(answer.sends_L.mean()), float(answer.rank_imbalance_L().mean())
