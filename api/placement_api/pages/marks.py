"""Whether a figure is better or worse than the one beside it: less is better of all that maps are measured by."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from placement.report.drawing.numbers import MINUS, NONE

SAME = 5e-4  # shares below which two figures are alike


def change_mark(value: float | None, reference: float | None) -> Markup:
    """How far a figure lies from another, in words and colour; a dash where that says nothing."""
    if value is None or not reference:
        return Markup(NONE)
    share = value / reference - 1
    if abs(share) < SAME:
        return Markup('<span class="same">as good</span>')
    kind = "better" if share < 0 else "worse"
    return Markup('<span class="{0}">{1} {0}</span>').format(kind, two_digits(share))


def mean_mark(one: Mapping[str, float | None] | None, other: Mapping[str, float | None] | None) -> Markup:
    """As `change_mark`, of the means over layers."""
    return change_mark(None if one is None else one["mean"], None if other is None else other["mean"])


def two_digits(share: float) -> str:
    """0.2238 -> +22%, -0.0344 -> −3.4%, 2.127 -> +213%."""
    percent = abs(share) * 100
    text = f"{percent:.0f}" if percent >= 9.95 else f"{percent:#.2g}"
    return f"{MINUS if share < 0 else '+'}{text}%"
