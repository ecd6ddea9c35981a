"""The legend of a chart hides no mark where a corner of the plot is free."""

from __future__ import annotations

import pytest

from placement.report.drawing.svg import Chart

NAMES = [("front", "s2", "circle"), ("eplb, training faint", "s3", "square")]
CORNERS = [(9.5, 9.5), (9.5, 0.5), (0.5, 9.5), (0.5, 0.5)]  # in the order in which they are tried


def place(marks: list[tuple[float, float]]) -> tuple[bool, bool]:
    """Whether the legend is on the right, and above."""
    ticks = (0.0, 5.0, 10.0)
    chart = Chart(x_ticks=ticks, y_ticks=ticks, x_label="x", y_label="y")
    before = len(chart.parts)
    chart.legend(NAMES, marks)
    text = next(part for part in chart.parts[before:] if part.startswith("<text"))
    x, y = (float(text.partition(f' {name}="')[2].partition('"')[0]) for name in "xy")
    return x > chart.width / 2, y < chart.height / 2


@pytest.mark.parametrize("taken", [0, 1, 2, 3])
def test_the_legend_takes_a_corner_without_marks(taken: int) -> None:
    """The upper right one if it is free, else another."""
    x, y = CORNERS[taken]
    assert place(CORNERS[:taken]) == (x > 5, y > 5)


def test_where_all_corners_are_taken_it_hides_as_few_as_can_be() -> None:
    """Two marks in each corner but one."""
    assert place([*CORNERS, *CORNERS[:2], CORNERS[3]]) == (False, True)
