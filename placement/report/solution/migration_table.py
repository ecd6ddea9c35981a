"""What a change of maps moves, for the terminal; it fits in 80 columns."""

from __future__ import annotations

import numpy as np
from rich.table import Table

from placement.core.migration import MigrationPlan
from placement.core.resize import NEW
from placement.report.drawing.numbers import human_bytes, number, percent, plural
from placement.report.drawing.table import table_of

MOST_ROWS = 24
MOST_RUNS = 16


def migration_line(plan: MigrationPlan) -> str:
    """One sentence: how many slots move, what that is in bytes, and how long it takes."""
    if not plan.num_moves:
        return "Nothing moves: every rank holds its experts already."
    slots = len(plan.layer_ids) * plan.cluster.num_slots
    loaded = ""
    if plan.num_loaded:
        loaded = (
            f" {plural(plan.num_loaded, 'slot')} of them, {human_bytes(plan.bytes_loaded)}, no rank can send any more: "
            f"they come from the checkpoint, whose time is not counted."
        )
    return (
        f"{plural(plan.num_moves, 'slot')} of {slots:,} move ({percent(plan.num_moves / slots)}): "
        f"{human_bytes(plan.bytes_between_nodes)} between nodes and {human_bytes(plan.bytes_within_nodes)} within, "
        f"{number(plan.time_ms())} ms or more.{loaded}{_ranks(plan)}"
    )


def _ranks(plan: MigrationPlan) -> str:
    """Which ranks the new ones were before the change, where the cluster was resized."""
    if plan.old_rank_G is None:
        return ""
    runs: list[tuple[int, int]] = []  # (first rank, how many)
    for rank in plan.old_rank_G.tolist():
        first, length = runs[-1] if runs else (NEW, 0)
        if length and rank == (NEW if first == NEW else first + length):
            runs[-1] = first, length + 1
        else:
            runs.append((rank, 1))
    said = [
        f"{length} empty" if first == NEW else str(first) if length == 1 else f"{first} to {first + length - 1}"
        for first, length in runs
    ]
    return f" The ranks were before: {', '.join(said[:MOST_RUNS])}{', ...' if len(said) > MOST_RUNS else ''}."


def migration_table(plan: MigrationPlan) -> Table:
    """One row a layer that changes, the busiest link of each, and the totals."""
    heads = ("slots\nthat move", "bytes\nbetween nodes", "bytes\nwithin nodes", "busiest\nlink")
    table = table_of("\nlayer", *heads, caption=_caption(plan))
    table.columns[0].justify = "right"
    node_M = [rank // plan.cluster.gpus_per_node for rank in (plan.source_M, plan.target_M)]
    sent_M = plan.sent_M
    size = plan.cluster.expert_bytes
    changed, moves = np.unique(plan.layer_M[plan.moves_M], return_counts=True)
    for layer, count in zip(changed[:MOST_ROWS].tolist(), moves.tolist(), strict=False):
        copies_NN = np.zeros_like(plan.bytes_NN)
        mine = sent_M & (plan.layer_M == layer)
        np.add.at(copies_NN, (node_M[0][mine], node_M[1][mine]), 1)
        within = int(np.trace(copies_NN))
        cells = (human_bytes((int(mine.sum()) - within) * size), human_bytes(within * size), _busiest(copies_NN * size))
        table.add_row(str(plan.layer_ids[layer]), f"{count:,}", *cells)
    if len(changed) > MOST_ROWS:
        table.add_row("…", f"{plural(len(changed) - MOST_ROWS, 'more layer')}", style="dim")
    table.add_section()
    totals = (human_bytes(plan.bytes_between_nodes), human_bytes(plan.bytes_within_nodes), _busiest(plan.bytes_NN))
    table.add_row("all", f"{plan.num_moves:,}", *totals, style="bold")
    return table


def _busiest(bytes_NN: np.ndarray) -> str:
    """The pair of nodes that most goes between."""
    between_NN = bytes_NN * (1 - np.eye(len(bytes_NN), dtype=np.int64))
    source, target = np.unravel_index(int(between_NN.argmax()), between_NN.shape)
    if not between_NN[source, target]:
        return ""
    return f"node {source} to {target}: {human_bytes(int(between_NN[source, target]))}"


def _caption(plan: MigrationPlan) -> str:
    most_out, most_in = (int(plan.bytes_GG.sum(axis=axis).max()) for axis in (1, 0))
    return (
        f"{migration_line(plan)}\nOne rank sends {human_bytes(most_out)} at most and receives {human_bytes(most_in)}; "
        f"an expert is {human_bytes(plan.cluster.expert_bytes)}."
    )
