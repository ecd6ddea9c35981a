"""Sends against imbalance: `python benchmarks/peers/plot.py RESULT.json` draws what `run.py` measured again."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
from families import FAMILIES
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox
from table import DEFAULT, Row, input_result, load
from verdict import not_beaten

OURS = "#0b3d91"
COLOURS = ("#6b7280", "#b45309", "#047857", "#a21caf")
MARKERS = ("s", "^", "o", "D")
# pixels from a point to its name, near first
REACH = (10, 16, 28, 42, 58, 76, 96, 118, 142, 170)


def draw(rows: Sequence[Row], path: Path) -> None:
    """One panel a case, two in a row; 1600 pixels wide."""
    titles = list(dict.fromkeys(row.case for row in rows))
    lines = -(-len(titles) // 2)
    figure, axes = plt.subplots(lines, 2, figsize=(16, 8 * lines + 0.7), dpi=100, squeeze=False, facecolor="white")
    for title, panel in zip(titles, axes.flat, strict=False):
        _draw_case([row for row in rows if row.case == title], panel)
    for panel in list(axes.flat)[len(titles) :]:
        panel.axis("off")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=3, frameon=False, fontsize=10.5)
    figure.tight_layout(rect=(0, 0.7 / (8 * lines + 0.7), 1, 1), w_pad=2)
    for title, panel in zip(titles, axes.flat, strict=False):
        _label([row for row in rows if row.case == title], panel)
    figure.savefig(path)
    plt.close(figure)


def _draw_case(rows: Sequence[Row], panel: Axes) -> None:
    ours = [row.point() for row in rows if row.ours]
    front = not_beaten(ours)
    panel.plot([p.imbalance for p in ours], [p.sends for p in ours], "o", color=OURS, ms=5, zorder=3)
    default = next(row.point() for row in rows if row.name == DEFAULT)
    panel.plot([p.imbalance for p in front], [p.sends for p in front], "-o", color=OURS, lw=2, ms=5, zorder=3,
               label="ours, by what is counted (ring: the default)")  # fmt: skip
    panel.plot(default.imbalance, default.sends, "o", ms=13, mfc="none", mec=OURS, mew=2, zorder=3)
    for (family, peers), colour, marker in zip(FAMILIES.items(), COLOURS, MARKERS, strict=True):
        names = {peer.name for peer in peers}
        points = [row.point() for row in rows if row.name in names]
        panel.plot([p.imbalance for p in points], [p.sends for p in points], marker, color=colour, ms=6, label=family)
    panel.set_title(rows[0].case, fontsize=13)
    panel.set_xlabel("rank imbalance, held out (most loaded GPU over the mean)", fontsize=11)
    panel.set_ylabel("sends per token, held out", fontsize=11)
    panel.grid(color="#e5e7eb", lw=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.margins(x=0.1, y=0.08)


def _label(rows: Sequence[Row], panel: Axes) -> None:
    """Every point's name where it covers no point, name or line, with a line to its point where it is far."""
    canvas = panel.figure.canvas
    colour_of = {peer.name: colour for peers, colour in zip(FAMILIES.values(), COLOURS, strict=True) for peer in peers}
    at = {row.name: panel.transData.transform((row.point().imbalance, row.point().sends)) for row in rows}
    names_at: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        names_at.setdefault((4 * round(at[row.name][0] / 4), 4 * round(at[row.name][1] / 4)), []).append(row)
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in names_at]
    taken += _along([at[row.name] for row in rows if row.ours])
    inside = panel.get_window_extent()
    # crowded ones choose last: those with room keep their names near
    order = sorted(names_at, key=lambda one: sum(abs(one[0] - x) < 60 and abs(one[1] - y) < 25 for x, y in names_at))
    for x, y in order:
        same = names_at[x, y]
        text = panel.annotate(
            ", ".join(row.name for row in same).removeprefix("ours, ").replace("hottest on every node", "hot"),
            (same[0].point().imbalance, same[0].point().sends), xytext=(0, 0), textcoords="offset pixels",
            fontsize=9, color=OURS if same[0].ours else colour_of[same[0].name], zorder=4,
            fontweight="bold" if same[0].ours else "normal", ha="left", va="center",
            arrowprops={"arrowstyle": "-", "color": "#9ca3af", "lw": 0.7, "shrinkA": 0, "shrinkB": 3},
        )  # fmt: skip
        size = text.get_window_extent(canvas.get_renderer())
        best, fewest = None, float("inf")
        for reach in REACH:
            for angle in range(0, 360, 20):
                right, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
                dx = right * reach - size.width * (1 - right) / 2
                dy = up * reach
                box = Bbox.from_bounds(x + dx - 2, y + dy - size.height / 2 - 1, size.width + 4, size.height + 2)
                outside = box.x0 < inside.x0 or box.x1 > inside.x1 + 4 or box.y0 < inside.y0 or box.y1 > inside.y1
                line = _along([(x + 9 * right, y + 9 * up), (x + right * reach, y + up * reach)]) if reach > 16 else []
                overlaps = 100 * outside + sum(20 * box.overlaps(other) for other in taken)
                overlaps += sum(part.overlaps(other) for part in line for other in taken)
                if overlaps < fewest:
                    best, fewest, used = (dx, dy), overlaps, [box, *line]
                    far = reach > 16
            if fewest == 0:
                break
        text.set_position(best)
        text.arrow_patch.set_visible(far)
        taken += used


def _along(points: Sequence[Sequence[float]]) -> list[Bbox]:
    """Small boxes along a line, so that no name covers it."""
    boxes = []
    for (x0, y0), (x1, y1) in pairwise(points):
        steps = max(int(max(abs(x1 - x0), abs(y1 - y0)) / 6), 1)
        boxes += [
            Bbox.from_bounds(x0 + (x1 - x0) * i / steps - 2, y0 + (y1 - y0) * i / steps - 2, 4, 4) for i in range(steps)
        ]
    return boxes


def draw_all(rows: Sequence[Row], stem: Path) -> None:
    """`STEM.png` for real traces, `STEM-synthetic.png` for synthetic ones."""
    for suffix, kind in ((".png", False), ("-synthetic.png", True)):
        chosen = [row for row in rows if ("(synthetic)" in row.case) == kind]
        if chosen:
            draw(chosen, stem.with_name(stem.name + suffix))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=input_result, help="JSON file of run.py")
    result: Path = parser.parse_args().result
    draw_all(load(result)[0], result.with_suffix(""))
