"""A small chart in SVG, whose colours and letters come from the style sheet of the page that it stands on.

All pictures of the project are drawn here: text stays text, a pointer finds the figures, dark mode restyles all of it,
and the bytes depend on nothing but the values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np
import numpy.typing as npt

MARKS = {
    "circle": "a{r} {r} 0 1 0 {d} 0a{r} {r} 0 1 0 -{d} 0z",
    "square": "v-{r}h{d}v{d}h-{d}z",
    "triangle": "m0 {r}h{d}l-{r} -{d}z",
    "diamond": "l{r} -{r}l{r} {r}l-{r} {r}z",
}


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values from at most `low` to at least `high`, about `count` of them."""
    if not high > low:
        high = low + 1
    raw = (high - low) / count
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


class Chart:
    """Axes from tick to tick, then what is drawn on them, in the order of the calls."""

    def __init__(
        self,
        *,
        x_ticks: Sequence[float],
        y_ticks: Sequence[float],
        x_label: str,
        y_label: str,
        x_range: tuple[float, float] | None = None,
        y_range: tuple[float, float] | None = None,
        width: int = 560,
        height: int = 320,
    ) -> None:
        self.width, self.height = width, height
        self.left, self.right, self.top, self.bottom = 52, width - 12, 28, height - 40
        self.x_range = x_range or (x_ticks[0], x_ticks[-1])
        self.y_range = y_range or (y_ticks[0], y_ticks[-1])
        self.parts: list[str] = []
        for value in y_ticks:
            y = self.y(value)
            self.parts.append(f'<path class="grid" d="M{self.left} {y}H{self.right}"/>')
            self.y_tick(value)
        for value in x_ticks:
            self.parts.append(f'<path class="tick" d="M{self.x(value)} {self.bottom}v5"/>')
            self.x_tick(value)
        self.parts.append(f'<path class="axis" d="M{self.left} {self.bottom}H{self.right}"/>')
        self.text((self.left + self.right) / 2, height - 6, x_label, "middle", "label")
        self.text(4, 14, y_label, "start", "label")

    def x(self, value: float) -> float:
        low, high = self.x_range
        return round(self.left + (value - low) / (high - low) * (self.right - self.left), 1)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return round(self.bottom - (value - low) / (high - low) * (self.bottom - self.top), 1)

    def text(self, x: float, y: float, text: str, anchor: str, kind: str = "") -> None:
        css = f' class="{kind}"' if kind else ""
        self.parts.append(f'<text{css} x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>')

    def x_tick(self, value: float, text: str = "", kind: str = "") -> None:
        """The number, or a text in its place, below the axis."""
        self.text(self.x(value), self.bottom + 18, text or f"{value:g}", "middle", kind)

    def y_tick(self, value: float, name: str | None = None) -> None:
        self.text(self.left - 8, self.y(value) + 4, f"{value:g}" if name is None else name, "end")

    def bar(self, series: str, x: float, low: float, high: float, *, wide: bool) -> None:
        """An upright bar from `low` to `high`, thin or wide."""
        kind = " wide" if wide else ""
        self.parts.append(f'<path class="line {series}{kind}" d="M{self.x(x)} {self.y(low)}V{self.y(high)}"/>')

    def line(self, series: str, xs: Sequence[float], ys: Sequence[float]) -> None:
        points = "L".join(f"{self.x(x)} {self.y(y)}" for x, y in zip(xs, ys, strict=True))
        self.parts.append(f'<path class="line {series}" d="M{points}"/>')

    def mark(
        self,
        series: str,
        shape: str,
        x: float,
        y: float,
        tip: str = "",
        *,
        radius: float = 3,
        kind: str = "",
        link: str = "",
    ) -> None:
        """A mark that says `tip` under a pointer; the script of the service's page follows `link`."""
        css = " ".join(part for part in ("mark", series, kind) if part)
        data = f' data-link="{escape(link)}"' if link else ""
        end = f"><title>{escape(tip)}</title></path>" if tip else "/>"
        self.parts.append(f'<path class="{css}"{data} d="{_outline(shape, self.x(x), self.y(y), radius)}"{end}')

    def legend(self, entries: Sequence[tuple[str, str, str]], marks: Sequence[tuple[float, float]] = ()) -> None:
        """Names beside their marks, (name, series, shape) each, in the corner of the plot that has fewest of the marks;
        of several the upper right one."""
        wide, high = 26 + 6.2 * max(len(name) for name, _, _ in entries), 17 * len(entries) + 6
        at = [(self.x(x), self.y(y)) for x, y in marks]
        corners = [(x, y) for x in (self.right - wide, self.left + 8) for y in (self.top, self.bottom - high - 4)]
        left, top = min(
            corners, key=lambda corner: sum(0 <= x - corner[0] <= wide and 0 <= y - corner[1] <= high for x, y in at)
        )
        x = left + 18
        for row, (name, series, shape) in enumerate(entries):
            y = top + 10 + 17 * row
            self.parts.append(f'<path class="mark {series}" d="{_outline(shape, x - 10, y, 4)}"/>')
            self.text(x, y + 4, name, "start")

    def column(self, low: float, high: float, tip: str, value: str) -> None:
        """A strip of the plot from x `low` to `high` that says `tip` under a pointer; `value` is for the script."""
        x = self.x(low)
        self.parts.append(
            f'<rect class="column" data-value="{escape(value)}" x="{x:g}" y="{self.top}" '
            f'width="{self.x(high) - x:.4g}" height="{self.bottom - self.top}"><title>{escape(tip)}</title></rect>'
        )

    def shades(self, shade_YX: npt.NDArray[np.int64], darkest: int) -> None:
        """Fill the plot with cells, first row on top: blue below 0 to `-darkest`, clear at 0, orange above."""
        rows, columns = shade_YX.shape
        wide, high = (self.right - self.left) / columns, (self.bottom - self.top) / rows
        self.parts.append(
            f'<g class="cells" transform="translate({self.left} {self.top + high / 2:.5g}) '
            f'scale({wide:.5g} {high:.5g})">'
        )
        for shade in np.unique(shade_YX[shade_YX != 0]).tolist():
            edge_YX = np.diff((shade_YX == shade).astype(np.int8), axis=1, prepend=0, append=0)
            (row_N, start_N), (_, stop_N) = np.nonzero(edge_YX == 1), np.nonzero(edge_YX == -1)
            runs = zip(row_N.tolist(), start_N.tolist(), (stop_N - start_N).tolist(), strict=True)
            outline = "".join(f"M{start} {row}h{length}" for row, start, length in runs)
            kind = "below" if shade < 0 else "above"
            self.parts.append(f'<path class="{kind}" stroke-opacity="{abs(shade) / darkest:.2g}" d="{outline}"/>')
        self.parts.append("</g>")

    def rule(self, y: float) -> None:
        self.parts.append(f'<path class="rule" d="M{self.left} {self.y(y)}H{self.right}"/>')

    def upright(self, x: float) -> None:
        self.parts.append(f'<path class="rule" d="M{self.x(x)} {self.top}V{self.bottom}"/>')

    def svg(self, description: str) -> str:
        """The chart as a part of a page; `description` is what a screen reader says."""
        head = f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(description)}">'
        return "\n".join([head, *self.parts, "</svg>"])

    def file(self, description: str, style: str) -> str:
        """The chart as a file of its own, on a ground of its own; `style` is the style sheet of charts."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img" aria-label="{escape(description)}">'
        )
        ground = f'<path class="ground" d="M0 0h{self.width}v{self.height}H0z"/>'
        return "\n".join([head, f"<style>\n{style}</style>", ground, *self.parts, "</svg>", ""])


def _outline(shape: str, x: float, y: float, radius: float) -> str:
    """The path of a mark around a point."""
    radius = radius * 1.3 if shape == "diamond" else radius  # so that all shapes weigh alike
    return f"M{x - radius:.4g} {y:g}" + MARKS[shape].format(r=f"{radius:g}", d=f"{2 * radius:g}")
