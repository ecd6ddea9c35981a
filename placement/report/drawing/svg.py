"""A small chart in SVG whose colours and letters come from the page's style sheet.

Written by hand rather than drawn by matplotlib: the page restyles it for dark mode, text stays text, marks carry
tooltips, and the bytes depend on nothing but the values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

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
    """Axes from tick to tick, then marks and lines on them."""

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
            self.text(self.left - 8, y + 4, f"{value:g}", "end")
        for value in x_ticks:
            x = self.x(value)
            self.parts.append(f'<path class="tick" d="M{x} {self.bottom}v5"/>')
            self.text(x, self.bottom + 18, f"{value:g}", "middle")
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

    def line(self, series: str, xs: Sequence[float], ys: Sequence[float]) -> None:
        points = "L".join(f"{self.x(x)} {self.y(y)}" for x, y in zip(xs, ys, strict=True))
        self.parts.append(f'<path class="line {series}" d="M{points}"/>')

    def mark(self, series: str, shape: str, x: float, y: float, tip: str, *, radius: float = 3, kind: str = "") -> None:
        radius = radius * 1.3 if shape == "diamond" else radius  # so that all shapes weigh alike
        outline = MARKS[shape].format(r=f"{radius:g}", d=f"{2 * radius:g}")
        css = " ".join(part for part in ("mark", series, kind) if part)
        start = f"M{self.x(x) - radius:.4g} {self.y(y):g}"
        self.parts.append(f'<path class="{css}" d="{start}{outline}"><title>{escape(tip)}</title></path>')

    def image(self, uri: str) -> None:
        """Fill the plot area with an image of a few large pixels."""
        self.parts.append(
            f'<image href="{uri}" x="{self.left}" y="{self.top}" width="{self.right - self.left}" '
            f'height="{self.bottom - self.top}" preserveAspectRatio="none"/>'
        )

    def rule(self, y: float) -> None:
        self.parts.append(f'<path class="rule" d="M{self.left} {self.y(y)}H{self.right}"/>')

    def svg(self, description: str) -> str:
        """The chart; `description` is what a screen reader says."""
        head = f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(description)}">'
        return "\n".join([head, *self.parts, "</svg>"])
