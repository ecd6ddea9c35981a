"""Small repairs and constructions that several solvers share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.cluster import Cluster


def separate_copies(
    phy2log_P: npt.NDArray[np.integer], cluster: Cluster, load_E: npt.NDArray[np.floating]
) -> npt.NDArray[np.int32]:
    """Swap slots until no rank holds an expert twice (engines fail on such maps, EPLB makes them: its issue #22).

    Each repair takes the swap that changes the two ranks' loads least, on the same node if there is one. Copies beyond
    one a rank, which cannot be separated, give way to the expert with the highest load per copy.
    """
    row = np.array(phy2log_P, dtype=np.int32)
    num_experts, slots = len(load_E), cluster.slots_per_gpu
    copies = np.bincount(row, minlength=num_experts)
    for e in np.flatnonzero(copies > cluster.num_ranks):
        for p in np.flatnonzero(row == e)[cluster.num_ranks :]:
            per_copy = np.where(copies < cluster.num_ranks, load_E / np.maximum(copies, 1), -1.0)
            hottest = int(np.argmax(per_copy))
            row[p] = hottest
            copies[e] -= 1
            copies[hottest] += 1
    per_copy = np.asarray(load_E, dtype=np.float64) / np.maximum(copies, 1)
    rank_of = np.arange(len(row)) // slots
    node_of = rank_of // cluster.gpus_per_node
    while True:
        holds = np.zeros((cluster.num_ranks, num_experts), dtype=np.int64)
        np.add.at(holds, (rank_of, row), 1)
        twice = np.flatnonzero(holds[rank_of, row] > 1)
        if not len(twice):
            return row
        p = int(twice[-1])
        # slot q may take the copy if its rank lacks the expert, and ours lacks q's
        allowed = (holds[rank_of, row[p]] == 0) & (holds[rank_of[p], row] == 0)
        change = np.abs(per_copy[row] - per_copy[row[p]]) + 1e-9 * (node_of != node_of[p])
        if not allowed.any():
            # then every rank that lacks the expert holds only experts of ours, so one of them twice: each swap, this
            # one too, leaves fewer doubles than before, so the loop ends
            allowed = (holds[rank_of, row[p]] == 0) & (holds[rank_of, row] > 1)
        q = int(np.argmin(np.where(allowed, change, np.inf)))
        row[p], row[q] = row[q], row[p]
