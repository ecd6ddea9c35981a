"""What `placement advise` shows in the terminal: sentences, and tables that fit in 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from placement.analysis.advise.advice import Advice
from placement.analysis.advise.capacity_factor import IN_ORDER, MIXED, WHOLE
from placement.analysis.advise.decay import Decay
from placement.analysis.advise.map_cost import EPLB, LINEAR, SOLVED, Figures
from placement.errors import printable
from placement.report.advice import advice_text as words
from placement.report.advice.advice_steps import steps_table
from placement.report.drawing.numbers import NONE, human_bytes, number, percent, plural
from placement.report.drawing.table import short, table_of

TIMES = "\N{MULTIPLICATION SIGN}"
NAME_WIDTH = 16
HEADERS = {WHOLE: "at once", MIXED: "mixed", IN_ORDER: "in order"}


def advice_tables(advice: Advice) -> Iterator[Table | Text]:
    """Title, and for each question the answer and its figures."""
    model, cluster = advice.model, advice.cluster
    yield Text(
        f"{printable(model.name)}: {plural(model.num_layers, 'layer')} of {plural(model.num_experts, 'expert')}, "
        f"top-{model.top_k}, on {cluster.num_nodes} {TIMES} {plural(cluster.gpus_per_node, 'GPU')}",
        style="bold",
    )
    yield Text(f"{plural(advice.num_tokens, 'token')} in {plural(advice.num_requests, 'request')}", style="dim")
    if advice.default_sizes:
        yield Text(words.SIZES, style="dim")
    said = words.answers(advice)
    tables = {
        "worth": [_worth(advice)],
        "transports": _transports(advice),
        "redundancy": [_redundancy(advice)],
        "phases": _phases(advice),
        "grouping": _grouping(advice),
        "steps": [] if advice.steps is None else [steps_table(advice.steps)],
        "capacity": [_capacity(advice)],
        "drift": [_drift(one) for one in advice.drift if len(one.names) > 1],
    }
    for key, question in words.QUESTIONS.items():
        yield Text(f"\n{question}", style="bold")
        for sentence in said[key]:
            yield Text(sentence)
        for table in tables[key]:
            yield Text("")
            yield table


def _cells(figures: Figures) -> list[str]:
    return [
        number(figures.sends),
        human_bytes(figures.bytes_per_token),
        f"{number(figures.imbalance)} ({number(figures.worst_imbalance)})",
        number(figures.step_us),
    ]


COLUMNS = ("sends\n/token", "bytes\n/token", "rank imb.\nmean (max)", "step\nµs")


def _worth(advice: Advice) -> Table:
    table = table_of("\nmap", *COLUMNS)
    for name in (LINEAR, EPLB, SOLVED):
        table.add_row(name, *_cells(advice.worth.maps[name]), style="bold" if name == SOLVED else "")
    return table


def _transports(advice: Advice) -> list[Table]:
    if advice.transports is None:
        return []
    table = table_of("\ntransport", "bytes/token\nlinear", "\neplb", "\nsolved", "\nsaved", "step µs\nsolved")
    for one in advice.transports:
        moved = [human_bytes(one.maps[name].bytes_per_token or 0.0) for name in (LINEAR, EPLB, SOLVED)]
        table.add_row(
            one.transport, *moved, "fixed" if one.fixed else percent(one.saved), number(one.maps[SOLVED].step_us)
        )
    return [table]


def _redundancy(advice: Advice) -> Table:
    found = advice.redundancy
    known = found.rows[0].kv_share is not None
    headers = ("slots\n/GPU", "sends\n/token", "rank\nimb.", "step µs\nsolved", "step µs\neplb", "weights\n/GPU")
    table = table_of("redund.\nexperts", *headers, "KV cache\ngiven up", *(["of\nit"] if known else []))
    for row in found.rows:
        solved = row.maps[SOLVED]
        table.add_row(
            f"{row.redundant}",
            f"{row.slots_per_gpu}",
            number(solved.sends),
            number(solved.imbalance),
            number(solved.step_us),
            number(row.maps[EPLB].step_us),
            human_bytes(row.weights_bytes),
            human_bytes(row.given_up_bytes),
            *([percent(row.kv_share)] if known else []),
            style="bold" if row is found.recommended else "",
        )
    return table


def _phases(advice: Advice) -> list[Table]:
    if advice.phases is None:
        return []
    table = table_of("phase\nmap", *COLUMNS)
    for phase in advice.phases.phases:
        table.add_row(Text(phase.name, style="italic"))
        for name, figures in phase.maps.items():
            table.add_row(f" {name}", *_cells(figures))
    return [table]


def _grouping(advice: Advice) -> list[Table]:
    if advice.grouping is None:
        return []
    table = table_of("\nway to place and group", *COLUMNS)
    for name, figures in advice.grouping.maps.items():
        table.add_row(name, *_cells(figures), style="bold" if name == advice.grouping.best else "")
    return [table]


def _capacity(advice: Advice) -> Table:
    found = advice.capacity
    names = list(found.overall)
    table = table_of("\nlayer", *(f"{title}\n{HEADERS[name]}" for title in ("max/mean", "factor") for name in names))
    rows = [(f"{layer.layer_id}", layer.by) for layer in found.layers]
    for title, by in [*rows, ("all", found.overall)]:
        if title == "all":
            table.add_section()
        table.add_row(
            title,
            *(number(by[name].peak) for name in names),
            *(factor_text(by[name].factor, found.factors[-1]) for name in names),
        )
    return table


def factor_text(factor: float | None, largest: float) -> str:
    return f"> {largest:g}" if factor is None else f"{factor:g}"


def _drift(found: Decay) -> Table:
    """Rows are what a map was fitted on, columns (numbered) what it is measured on."""
    table = table_of("gain kept by a map\nsolved for", *(f"on\n{number}" for number in range(1, len(found.names) + 1)))
    parts = range(len(found.names))
    for v in parts:
        table.add_row(_name(v, found.names), *map(_kept, [found.kept(v, w) for w in parts]))
    table.add_row("all", *map(_kept, [found.all_kept(w) for w in parts]))
    return table


def _kept(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.0f}%".replace("-", "\N{MINUS SIGN}")


def _name(v: int, names: Sequence[str]) -> Text:
    return Text(f"{v + 1} {short(printable(names[v]), NAME_WIDTH)}")
