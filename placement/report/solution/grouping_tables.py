"""Tables of a grouping for the terminal; they fit in 80 columns."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from placement.cost.evaluation import Evaluation
from placement.errors import printable
from placement.pipeline.documents.grouping_document import domain_rows
from placement.pipeline.grouped_solution import Gain, GroupedSolution
from placement.report.drawing.numbers import change, number, plural
from placement.report.drawing.table import short, table_of
from placement.report.solution.grouping_section import home_from

MOST_DOMAINS = 12


def gains_table(grouped: GroupedSolution) -> Table:
    """What placement alone, grouping alone and both bring; held out where requests were."""
    heads = ("sends\n/token", "against\nlinear", "rank\nimb.", "routed\nsends", "training\nsends")
    table = table_of("\nway to place and group", *heads, caption=_caption(grouped))
    linear = _shown(grouped.gains[0]).summary()["sends_per_token"]
    for one in grouped.gains:
        summary = _shown(one).summary()
        homes = "random homes" if one.homes is None else "grouped"
        cells = [
            number(summary["sends_per_token"]),
            "" if one is grouped.gains[0] else change(summary["sends_per_token"], linear),
            number(summary["rank_imbalance"]["mean"]),
            "" if one.routed is None else number(one.routed.summary()["sends_per_token"]),
            number(one.train.summary()["sends_per_token"]),
        ]
        name = one.name.removesuffix(" + homes")
        table.add_row(Text(f"{printable(name)}, {homes}"), *cells, style="bold" if one is grouped.gains[-1] else "")
    return table


def sources_table(grouped: GroupedSolution) -> Table:
    """What each thing that a router may know of a request is worth, on the held-out requests."""
    heads = ("grouped\nsends", "tokens\nper node", "routed\nsends", "tokens\nper node")
    caption = "held-out requests; tokens per node: most over the mean; routed one by one: mean of several orders"
    stays = grouped.homes.session_tokens
    if stays is not None:
        caption += f"; a session stays where {stays:,.0f} of its tokens are cached: they weigh as much as the best home"
    table = table_of("\nhomes from", *heads, caption=caption)
    for one in grouped.homes.sources:
        figures = (one.grouped_sends, one.grouped_balance, one.routed_sends, one.routed_balance)
        table.add_row(one.name, *map(number, figures))
    return table


def domains_table(grouped: GroupedSolution) -> Table:
    """Which domains went to which node, and how local each is, before and after."""
    nodes = grouped.solution.cluster.num_nodes
    table = table_of("\ndomain", "tokens", "sends\nbefore", "\nafter")
    table.add_column(
        "share of its tokens on each node" if nodes <= 8 else "nodes with most of its tokens", no_wrap=True
    )
    rows = domain_rows(grouped)
    for row in rows[:MOST_DOMAINS]:
        table.add_row(
            Text(short(printable(row["domain"]), 24)),
            f"{row['tokens']:,}",
            number(row["sends_before"]),
            number(row["sends_after"]),
            _where(row, nodes),
        )
    if len(rows) > MOST_DOMAINS:
        table.caption = Text(f"and {plural(len(rows) - MOST_DOMAINS, 'smaller domain')}", style="dim")
    return table


def _shown(gain: Gain) -> Evaluation:
    return gain.held_out or gain.train


def _caption(grouped: GroupedSolution) -> str:
    homes = grouped.homes
    most, gap = number(homes.assignment.token_imbalance), f"{homes.assignment.gap:.3%}"
    said = f"tokens per node {most} of the mean at most, gap {gap}"
    if homes.held_out_Q is None or homes.routed_Q is None:
        return f"training requests; {said}"
    return (
        f"held-out requests: a home is decided from the {home_from(grouped)} and measured on the rest; all grouped "
        f"together, tokens per node {number(grouped.held_out_balance(homes.held_out_Q))} of the mean at most; routed "
        f"one by one, {number(grouped.held_out_balance(homes.routed_Q))}; training: {said}"
    )


def _where(row: dict[str, Any], nodes: int) -> str:
    shares = [tokens / row["tokens"] for tokens in row["tokens_by_node"]]
    if nodes <= 8:
        return " ".join(f"{share:4.0%}" for share in shares)
    most = sorted(range(nodes), key=lambda node: -shares[node])[:4]
    return ", ".join(f"{node}: {shares[node]:.0%}" for node in most if shares[node] > 0)
