"""How reports write numbers (three significant digits, thousands separators, a real minus sign) and names."""

from __future__ import annotations

import math
from collections.abc import Mapping

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"
BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def number(value: float | None) -> str:
    """1.6672 -> 1.67, 0.04321 -> 0.0432, 11962.13 -> 11,962; None -> a dash."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    shown = float(f"{value:.2e}")
    decimals = max(2 - math.floor(math.log10(abs(shown))), 0)
    text = f"{abs(value):,.{decimals}f}"
    return f"{MINUS}{text}" if value < 0 else text


def percent(share: float | None) -> str:
    """0.2238 -> 22.4%; None -> a dash."""
    return NONE if share is None else f"{number(share * 100)}%"


def change(value: float | None, reference: float | None) -> str:
    """How far `value` lies above or below `reference`, in percent; a dash where that says nothing."""
    if not reference or value is None:
        return NONE
    share = value / reference - 1
    if abs(share) < 5e-5:
        return "0%"
    return ("+" if share > 0 else "") + percent(share)


def mean_max(over_layers: Mapping[str, float | None] | None) -> str:
    """{"mean": 1.0842, "max": 1.2} -> 1.08 (1.20); None -> a dash."""
    return NONE if over_layers is None else f"{number(over_layers['mean'])} ({number(over_layers['max'])})"


def human_bytes(count: float | None) -> str:
    """36440.3 -> 36.4 kB; None or not a number -> a dash."""
    if count is None or not math.isfinite(count):
        return NONE
    unit = 0
    while count >= 999.5 and unit < len(BYTE_UNITS) - 1:
        count /= 1000
        unit += 1
    return f"{number(count)} {BYTE_UNITS[unit]}"


def plural(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"
