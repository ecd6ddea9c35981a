"""From one placement to another: what moves, by node, rank and layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from placement.core.migration import MigrationPlan
from placement.report.solution.migration_table import migration_line

MOST_STEPS = 200
LEVELS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class MovesPage:
    """nodes   by node that sends: (bytes, heat 0..4) to every node
    ranks   (rank, node, bytes sent, bytes received)
    layers  (layer id, slots that move, bytes between nodes, bytes within nodes) of layers that change
    steps   (layer id, slot, expert, from rank, to rank), the first ones
    """

    said: str
    tiles: list[tuple[str, float, str]]
    nodes: list[list[tuple[int, int]]]
    ranks: list[tuple[int, int, int, int]]
    layers: list[tuple[int, int, int, int]]
    steps: list[tuple[int, ...]]
    num_steps: int


def moves_page(plan: MigrationPlan) -> MovesPage:
    cluster = plan.cluster
    most = max(int(plan.bytes_NN.max()), 1)
    heat_NN = np.minimum(plan.bytes_NN * LEVELS // most, LEVELS - 1)
    sent_G, received_G = plan.bytes_GG.sum(axis=1).tolist(), plan.bytes_GG.sum(axis=0).tolist()
    moved = plan.moves_M
    return MovesPage(
        said=migration_line(plan),
        tiles=[
            ("Slots that move", plan.num_moves, f"of {len(plan.layer_ids) * cluster.num_slots:,}"),
            ("Bytes between nodes", plan.bytes_between_nodes, "over the network"),
            ("Bytes within nodes", plan.bytes_within_nodes, "over NVLink"),
            ("Time", plan.time_ms(), "of the busiest rank, at the cluster's bandwidths"),
        ],
        nodes=[
            list(zip(row, heat, strict=True))
            for row, heat in zip(plan.bytes_NN.tolist(), heat_NN.tolist(), strict=True)
        ],
        ranks=[
            (name, rank // cluster.gpus_per_node, sent, received)
            for rank, (name, sent, received) in enumerate(
                zip(cluster.engine_rank_G().tolist(), sent_G, received_G, strict=True)
            )
        ],
        layers=_layers(plan),
        steps=[tuple(step) for step in plan.copies_M5()[moved][:MOST_STEPS].tolist()],
        num_steps=plan.num_moves,
    )


def _layers(plan: MigrationPlan) -> list[tuple[int, int, int, int]]:
    per_node = plan.cluster.gpus_per_node
    crosses_M = plan.source_M // per_node != plan.target_M // per_node
    sizes = len(plan.layer_ids)
    moves_L = np.bincount(plan.layer_M[plan.moves_M], minlength=sizes).tolist()
    between_L = np.bincount(plan.layer_M[crosses_M], minlength=sizes).tolist()
    rows: Sequence[tuple[int, int, int]] = list(zip(plan.layer_ids, moves_L, between_L, strict=True))
    unit = plan.cluster.expert_bytes
    return [(layer, moves, between * unit, (moves - between) * unit) for layer, moves, between in rows if moves]
