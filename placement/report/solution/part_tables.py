"""Every map on every part of the traffic: a heat table for the page and a plain one for the terminal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rich.table import Table
from rich.text import Text

from placement.core.choices import CAPTURES
from placement.errors import printable
from placement.pipeline.solution import Solution
from placement.report.drawing.numbers import number, percent
from placement.report.drawing.table import short, table_of

Floats = npt.NDArray[np.float64]

LEVELS = 5
NAME_WIDTH = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class PartTable:
    """What the page shows.

    Attributes:
        rows: (part, its tokens, cells); a cell is (sends, their heat, imbalance, its heat, whether the part is the
            map's worst) of each of `maps`.
        worst: The cost of each map on its worst part, as text; `mean` is that over all parts.
    """

    noun: str
    shown: str
    maps: list[str]
    rows: list[tuple[str, int, list[tuple[str, int, str, int, bool]]]]
    worst: list[str]
    mean: list[str]
    left_out: list[str]
    price: str


def part_table(solution: Solution) -> PartTable | None:
    """Held-out figures where every part has some; None where the requests are in no parts."""
    figures = solution.parts
    if figures is None:
        return None
    shown, answers = figures.shown()
    send_price, balance_price = figures.prices()
    maps = list(solution.maps)
    sends_WM = np.array([[answer[name].sends_L.mean() for name in maps] for answer in answers])
    imbalance_WM = np.array([[answer[name].rank_imbalance_L().mean() for name in maps] for answer in answers])
    cost_WM = np.array([[figures.cost(answer[name]) for name in maps] for answer in answers])
    sends_heat, imbalance_heat = _heat(sends_WM), _heat(imbalance_WM)
    worst_M = cost_WM.argmax(axis=0)
    rows = [
        (
            printable(name),
            answers[w][maps[0]].num_tokens,
            [
                (
                    number(float(sends_WM[w, m])),
                    int(sends_heat[w, m]),
                    number(float(imbalance_WM[w, m])),
                    int(imbalance_heat[w, m]),
                    bool(worst_M[m] == w),
                )
                for m in range(len(maps))
            ],
        )
        for w, name in enumerate(figures.names)
    ]
    return PartTable(
        noun=figures.noun,
        shown=shown,
        maps=maps,
        rows=rows,
        worst=[number(float(cost)) for cost in cost_WM.max(axis=0)],
        mean=[number(float(cost)) for cost in figures.mean(cost_WM)],
        left_out=[printable(name) for name in figures.left_out],
        price=f"{'sends + ' if send_price else ''}{number(balance_price)} × rank imbalance",
    )


def terminal_part_table(solution: Solution) -> Table | None:
    """One row a part, one column a map: sends and imbalance; the map's worst part is bold. Only of captures, and of
    a robust solve."""
    table = part_table(solution)
    if solution.parts is None or table is None or (solution.robust is None and solution.parts.by != CAPTURES):
        return None
    title = f"\nsends and rank imbalance by {table.noun}, {table.shown} requests"
    shown = table_of(table.noun, *table.maps, title=title)
    for w, (name, _, figures) in enumerate(table.rows):
        cells = [
            Text(f"{sends} {imbalance}", style="bold" if worst else "") for sends, _, imbalance, _, worst in figures
        ]
        weight = f" {percent(solution.parts.weight_W[w])}" if solution.parts.weight_W else ""
        shown.add_row(Text(f"{short(name, NAME_WIDTH)}{weight}"), *cells)
    shown.add_section()
    shown.add_row("worst cost", *table.worst)
    shown.add_row("mean cost", *table.mean)
    said = f"cost = {table.price}; bold: where the map costs most"
    if table.left_out:
        said += f"; left out, too small: {', '.join(table.left_out)}"
    shown.caption = Text(said, style="dim")
    return shown


def _heat(values_WM: Floats) -> npt.NDArray[np.int64]:
    """0 for the lowest of the table to LEVELS - 1 for the highest."""
    low, high = float(values_WM.min()), float(values_WM.max())
    if not high > low:
        return np.zeros(values_WM.shape, dtype=np.int64)
    return np.asarray(np.minimum((values_WM - low) / (high - low) * LEVELS, LEVELS - 1).astype(np.int64))
