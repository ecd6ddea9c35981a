"""How figures of steps are spread over the steps: beside each other for each map, and for a uniform router."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from placement.analysis.advise.steps import StepSize
from placement.report.drawing.lines import Legend
from placement.report.drawing.numbers import number
from placement.report.drawing.svg import Chart, ticks
from placement.report.steps.step_table import UNIFORM

FIGURES = (("busiest_gpu", "busiest GPU (max / mean)"), ("busiest_link", "busiest link (max / mean)"))
UNIFORM_LOOK = ("s5", "triangle")
SPACE = 0.8  # of what lies between two sizes, that is used by the maps


def steps_legend(looks: Mapping[str, tuple[str, str]]) -> Legend:
    """(name, series, shape) of the maps and of the uniform router."""
    return [(name, *look) for name, look in looks.items()] + [(UNIFORM, *UNIFORM_LOOK)]


def step_charts(sizes: Sequence[StepSize], looks: Mapping[str, tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """(phase, charts of FIGURES) for each phase.

    Args:
        sizes: Phase by phase, of the maps that `looks` names.
        looks: Colour series and shape of the marks of each map.
    """
    phases = dict.fromkeys(one.phase for one in sizes)
    return [
        (phase, [_chart([one for one in sizes if one.phase == phase], looks, name, label) for name, label in FIGURES])
        for phase in phases
    ]


def _chart(sizes: Sequence[StepSize], looks: Mapping[str, tuple[str, str]], figure: str, label: str) -> str:
    """A thin bar from the 1st to the 99th percentile, a wide one between the quartiles, a mark at the mean."""
    everyone = dict(looks) | {UNIFORM: UNIFORM_LOOK}
    columns = [{name: getattr(of, figure) for name, of in (one.maps | {UNIFORM: one.uniform}).items()} for one in sizes]
    chart = Chart(
        x_ticks=[],
        y_ticks=ticks(1.0, max(over.quantiles[-1] for column in columns for over in column.values())),
        x_range=(-0.5, len(sizes) - 0.5),
        x_label="tokens a GPU in a step",
        y_label=label,
    )
    said = []
    for place, (one, column) in enumerate(zip(sizes, columns, strict=True)):
        chart.x_tick(place, f"{one.tokens_per_gpu:,}")
        for number_of, (name, (series, shape)) in enumerate(everyone.items()):
            if name not in column:
                continue
            over, x = column[name], place + SPACE * ((number_of + 0.5) / len(everyone) - 0.5)
            least, low, middle, high, most = over.quantiles
            chart.bar(series, x, least, most, wide=False)
            chart.bar(series, x, low, high, wide=True)
            tip = (
                f"{name}, {one.tokens_per_gpu:,} tokens a GPU: mean {number(over.mean)}, median {number(middle)}, "
                f"half of the steps {number(low)} to {number(high)}, 1% below {number(least)}, 1% above {number(most)}"
            )
            if figure == "busiest_gpu" and name in one.maps and one.maps[name].best_split != over:
                tip += f"; with the best split over copies {number(one.maps[name].best_split.mean)}"
            chart.mark(series, shape, x, over.mean, tip, radius=4)
        means = ", ".join(f"{name} {number(over.mean)}" for name, over in column.items())
        said.append(f"{one.tokens_per_gpu:,} tokens a GPU: {means}")
    return chart.svg(f"Spread over steps of the {label} in {sizes[0].phase}, means: {'; '.join(said)}.")
