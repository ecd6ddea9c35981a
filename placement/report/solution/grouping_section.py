"""What the page shows of a grouping: the ways to place and to group, which domains went where, tokens of every node."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from placement.errors import printable
from placement.pipeline.documents.grouping_document import domain_rows, group_rows
from placement.pipeline.grouped_solution import JOINT, WITH_HOMES, Gain, GroupedSolution
from placement.report.drawing.numbers import change, number, percent, plural

MOST_DOMAINS = 40
DOMAINS_OF_NODE = 4
LEVELS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class WayRow:
    """One way to place and to group; cells are held-out, routed and training figures, in the order of `heads`."""

    name: str
    homes: str
    cells: list[str]
    is_result: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainRow:
    """A domain: what it sends before and after, and (share of its tokens, its heat) on every node."""

    name: str
    tokens: str
    before: str
    after: str
    change: str
    nodes: list[tuple[str, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupingPage:
    """heads: (part, headers of its columns); nodes: (node, requests, tokens, share of the mean, domains)."""

    said: str
    heads: list[tuple[str, list[str]]]
    ways: list[WayRow]
    domains: list[DomainRow]
    more_domains: str
    nodes: list[tuple[int, str, str, str, str]]
    balance: list[tuple[str, str]]
    home_from: str
    tolerance: float


def grouping_page(grouped: GroupedSolution) -> GroupingPage:
    """Held-out figures come first, where requests were held out."""
    held_out = grouped.gains[-1].held_out is not None
    heads = [("Training requests", ["sends per token", "rank imbalance", "tokens per node"])]
    if held_out:
        measured = ["sends per token", "against linear", "rank imbalance", "tokens per node"]
        heads = [
            ("Held out, grouped together", measured),
            ("Held out, routed one by one", [*measured[:1], *measured[2:]]),
            *heads,
        ]
    rows = domain_rows(grouped)
    return GroupingPage(
        said=_said(grouped),
        heads=heads,
        ways=[_way(grouped, one, held_out) for one in grouped.gains],
        domains=[
            DomainRow(
                name=printable(row["domain"]),
                tokens=f"{row['tokens']:,}",
                before=number(row["sends_before"]),
                after=number(row["sends_after"]),
                change=change(row["sends_after"], row["sends_before"]),
                nodes=[(_share(share), _heat(share)) for share in np.array(row["tokens_by_node"]) / row["tokens"]],
            )
            for row in rows[:MOST_DOMAINS]
        ],
        more_domains=plural(len(rows) - MOST_DOMAINS, "smaller domain") if len(rows) > MOST_DOMAINS else "",
        nodes=_nodes(grouped),
        balance=_balance(grouped),
        home_from=_home_from(grouped),
        tolerance=grouped.tolerance,
    )


def _home_from(grouped: GroupedSolution) -> str:
    """What the home of a held-out request is decided from."""
    if grouped.home_from == "prefill":
        return "its prefill"
    return f"the first {percent(float(grouped.home_from))} of its tokens"


def _said(grouped: GroupedSolution) -> str:
    """The gain of the result in one sentence: of placement alone, of grouping alone, of both."""
    first, last = grouped.gains[0], grouped.gains[-1]
    alone = grouped.gain(f"{first.name}{WITH_HOMES}")
    result = last.name.removesuffix(WITH_HOMES)
    placed = grouped.gain(grouped.solution.options.solver if result == JOINT else result)
    where = "held-out" if last.held_out is not None else "training"
    linear, both, moved, homed = (_sends(one) for one in (first, last, placed, alone))
    return (
        f"Against linear placement with random homes, placement alone changes the sends of {where} requests by "
        f"{change(moved, linear)}, grouping alone by {change(homed, linear)}, both by {change(both, linear)}."
    )


def _sends(gain: Gain) -> float:
    return float((gain.held_out or gain.train).sends_L.mean())


def _way(grouped: GroupedSolution, gain: Gain, held_out: bool) -> WayRow:
    homes, cells = gain.homes, []
    if held_out and gain.held_out is not None:
        sends, linear = _sends(gain), _sends(grouped.gains[0])
        cells += [number(sends), "" if gain is grouped.gains[0] else change(sends, linear)]
        cells += [number(float(gain.held_out.rank_imbalance_L().mean()))]
        cells += [
            "" if homes is None or homes.held_out_Q is None else number(grouped.held_out_balance(homes.held_out_Q))
        ]
        if gain.routed is None or homes is None or homes.routed_Q is None:
            cells += ["", "", ""]
        else:
            cells += [number(float(gain.routed.sends_L.mean())), number(float(gain.routed.rank_imbalance_L().mean()))]
            cells += [number(grouped.held_out_balance(homes.routed_Q))]
    cells += [number(float(gain.train.sends_L.mean())), number(float(gain.train.rank_imbalance_L().mean()))]
    cells += ["" if homes is None else number(homes.assignment.token_imbalance)]
    return WayRow(
        name=printable(gain.name.removesuffix(WITH_HOMES)),
        homes="random" if homes is None else "grouped",
        cells=cells,
        is_result=gain is grouped.gains[-1],
    )


def _nodes(grouped: GroupedSolution) -> list[tuple[int, str, str, str, str]]:
    rows = group_rows(grouped)
    mean = sum(row["tokens"] for row in rows) / len(rows)
    answer = []
    for row in rows:
        most = [f"{printable(name)} ({count})" for name, count in row["domains"].items()]
        more = f" and {plural(len(most) - DOMAINS_OF_NODE, 'other')}" if len(most) > DOMAINS_OF_NODE else ""
        share = number(row["tokens"] / mean) if mean else number(None)
        domains = ", ".join(most[:DOMAINS_OF_NODE]) + more
        answer.append((row["node"], f"{row['requests']:,}", f"{row['tokens']:,}", share, domains))
    return answer


def _balance(grouped: GroupedSolution) -> list[tuple[str, str]]:
    """(of which requests, most tokens of a node over the mean)."""
    homes = grouped.homes
    said = [("training requests", number(homes.assignment.token_imbalance))]
    if homes.held_out_Q is not None and homes.routed_Q is not None:
        said += [
            ("held-out requests grouped together", number(grouped.held_out_balance(homes.held_out_Q))),
            ("the same routed one by one", number(grouped.held_out_balance(homes.routed_Q))),
        ]
    return said


def _share(share: float) -> str:
    """Whole percents, so that a table of many nodes stays narrow."""
    return f"{share:.0%}" if share else ""


def _heat(share: float) -> int:
    """0 for none of a domain's tokens to LEVELS - 1 for all of them."""
    return min(int(share * LEVELS), LEVELS - 1)
