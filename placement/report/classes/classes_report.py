"""What one map for each class of traffic gains over one for all: a table for the terminal (80 columns) and the page."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from placement.cost.evaluation import Evaluation
from placement.errors import printable
from placement.pipeline.by_class_solution import ONE, OWN, ByClass, Cost
from placement.report.drawing.numbers import change, number
from placement.report.drawing.table import short, table_of
from placement.report.solution.summary import REFERENCE, shown_part

NAME_WIDTH = 22
MAPS = (REFERENCE, ONE, OWN)
MEAN, MIXED = "mean, by tokens", "all traffic, mixed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRow:
    """A class: (sends, imbalance) of each of MAPS; how sends and cost of the own map differ from those of the one."""

    name: str
    tokens: str
    cells: list[tuple[str, str]]
    sends: str
    cost: str
    better: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassTable:
    """mixed  the same of all traffic under the one map: what a pool that serves every class sees."""

    noun: str
    shown: str
    maps: tuple[str, ...]
    rows: list[ClassRow]
    mean: ClassRow
    mixed: ClassRow
    price: str
    said: list[str]


def class_table(answer: ByClass) -> ClassTable:
    """Held-out figures where every class has some."""
    figures = answer.figures()
    shown, answers = figures.shown()
    one = _mixed(answer, shown)
    rows = [
        _row(printable(name), *(answer.cost(maps[key]) for key in MAPS))
        for name, maps in zip(figures.names, answers, strict=True)
    ]
    send_price, balance_price = figures.prices()
    return ClassTable(
        noun=figures.noun,
        shown=shown,
        maps=MAPS,
        rows=rows,
        mean=_row(MEAN, *(answer.mean(answers, key) for key in MAPS)),
        mixed=_row(MIXED, answer.cost(one[REFERENCE]), answer.cost(one[answer.solution.result_name]), None),
        price=f"{'sends + ' if send_price else ''}{number(balance_price)} × rank imbalance",
        said=_said(answer, shown),
    )


def _row(name: str, eplb: Cost, one: Cost, own: Cost | None) -> ClassRow:
    return ClassRow(
        name=name,
        tokens=f"{one.tokens:,}",
        cells=[
            ("", "") if cost is None else (number(cost.sends), number(cost.rank_imbalance)) for cost in (eplb, one, own)
        ],
        sends="" if own is None else change(own.sends, one.sends),
        cost="" if own is None else change(own.cost, one.cost),
        better=own is None or own.cost < one.cost,
    )


def _said(answer: ByClass, shown: str) -> list[str]:
    """What the figures mean, in sentences; first of all where an own map is not worth having."""
    figures, worse = answer.figures(), [printable(name) for name in answer.not_better()]
    own = "Its own map is" if len(worse) == 1 else "Own maps are"
    said = []
    if len(worse) == len(answer.classes):
        said.append(f"Own maps are not better on {shown} requests for any {figures.noun}: keep the one for all.")
    elif worse:
        said.append(f"{own} not better on {shown} requests for {', '.join(worse)}: keep the one for all there.")
    else:
        said.append(f"Own maps are better on {shown} requests for every {figures.noun}.")
    if answer.left_out:
        names = ", ".join(map(printable, answer.left_out))
        said.append(
            f"Left out, with too few tokens or requests to fit and to judge by: {names}; the one for all serves them."
        )
    _, held = figures.shown()
    pools, mixed = answer.mean(held, OWN).cost, answer.cost(_mixed(answer, shown)[answer.solution.result_name]).cost
    way = "less" if pools < mixed else "more"
    said.append(
        f"A pool of nodes for every {figures.noun}, each with its own map, costs {number(pools)}; one pool for all "
        f"traffic mixed, with one map, {number(mixed)}: by these figures pools cost {way} ({change(pools, mixed)})."
    )
    return said


def _mixed(answer: ByClass, shown: str) -> dict[str, Evaluation]:
    """All traffic, on the side that is shown."""
    part, whole = shown_part(answer.solution)
    return whole if shown == part else answer.solution.train


def terminal_class_table(answer: ByClass) -> Table:
    """One row a class: sends and imbalance of eplb, of the one map for all and of its own; what the own one changes."""
    told = class_table(answer)
    heads = ("tokens", "one map", "own map", "sends", "cost")
    title = f"\none map for all beside one for each {told.noun}: sends, rank imbalance"
    caption = f"{told.shown} requests; changes are those of the own map against the one for all; cost = {told.price}; "
    table = table_of(told.noun, *heads, title=title, caption=f"{caption}dim: not better")
    for row in (*told.rows, None, told.mean, told.mixed):
        if row is None:
            table.add_section()
            continue
        cells = [" ".join(cell).strip() for cell in row.cells[MAPS.index(ONE) :]]
        name = Text(short(row.name, NAME_WIDTH))
        table.add_row(name, row.tokens, *cells, row.sends, row.cost, style="" if row.better else "dim")
    return table
