"""What the page shows of a grouping: the ways to place and to group, which domains went where, tokens of every node."""

from __future__ import annotations

from typing import Any

from placement.cost.evaluation import Evaluation
from placement.pipeline.documents.grouping_document import domain_rows, group_rows
from placement.pipeline.grouped_solution import JOINT, WITH_HOMES, Gain, GroupedSolution
from placement.report.drawing.numbers import change, number, percent

MEASURED = ["sends per token", "rank imbalance", "tokens per node"]


def home_from(grouped: GroupedSolution) -> str:
    """What the home of a held-out request is decided from, in words."""
    return "prefill" if grouped.home_from == "prefill" else f"first {percent(float(grouped.home_from))} of its tokens"


def grouping_page(grouped: GroupedSolution) -> dict[str, Any]:
    """Held-out figures come first, where requests were held out.

    heads: (part, headers of its columns); ways: (map, homes, cells in the order of the heads)
    """
    homes = grouped.homes
    heads = [("Training requests", MEASURED)]
    balance = [("training requests", number(homes.assignment.token_imbalance))]
    if grouped.gains[-1].held_out is not None:
        together = ("Held out, grouped together", [MEASURED[0], "against linear", *MEASURED[1:]])
        heads = [together, ("Held out, routed one by one", MEASURED), *heads]
    if homes.held_out_Q is not None and homes.routed_Q is not None:
        balance += [
            ("held-out requests grouped together", number(grouped.held_out_balance(homes.held_out_Q))),
            ("the same routed one by one", number(grouped.held_out_balance(homes.routed_Q))),
        ]
    return {
        "said": _said(grouped),
        "heads": heads,
        "ways": [_way(grouped, one) for one in grouped.gains],
        "domains": domain_rows(grouped),
        "groups": group_rows(grouped),
        "balance": balance,
        "home_from": f"the {home_from(grouped)}",
        "tolerance": grouped.tolerance,
    }


def _said(grouped: GroupedSolution) -> str:
    """The gain of the result in one sentence: of placement alone, of grouping alone, of both."""
    first, last = grouped.gains[0], grouped.gains[-1]
    alone = grouped.gain(f"{first.name}{WITH_HOMES}")
    result = last.name.removesuffix(WITH_HOMES)
    placed = grouped.gain(grouped.solution.options.solver if result == JOINT else result)
    where = "held-out" if last.held_out is not None else "training"
    linear, both, moved, homed = (
        float((one.held_out or one.train).sends_L.mean()) for one in (first, last, placed, alone)
    )
    return (
        f"Against linear placement with random homes, placement alone changes the sends of {where} requests by "
        f"{change(moved, linear)}, grouping alone by {change(homed, linear)}, both by {change(both, linear)}."
    )


def _way(grouped: GroupedSolution, gain: Gain) -> tuple[str, str, list[str]]:
    homes, linear = gain.homes, grouped.gains[0].held_out
    cells = []
    if gain.held_out is not None and linear is not None:
        together = None if homes is None or homes.held_out_Q is None else grouped.held_out_balance(homes.held_out_Q)
        sends, imbalance, tokens = _cells(gain.held_out, together)
        against = (
            "" if gain.held_out is linear else change(*(float(one.sends_L.mean()) for one in (gain.held_out, linear)))
        )
        cells = [sends, against, imbalance, tokens]
        routed = None if homes is None or homes.routed_Q is None else grouped.held_out_balance(homes.routed_Q)
        cells += _cells(gain.routed if routed is not None else None, routed)
    cells += _cells(gain.train, None if homes is None else homes.assignment.token_imbalance)
    return gain.name.removesuffix(WITH_HOMES), "random" if homes is None else "grouped", cells


def _cells(answer: Evaluation | None, balance: float | None) -> list[str]:
    """Sends, rank imbalance, and tokens of a node; empty where there are none."""
    known = [] if answer is None else [float(answer.sends_L.mean()), float(answer.rank_imbalance_L().mean())]
    return [*(map(number, known) if known else ("", "")), "" if balance is None else number(balance)]
