"""Small repairs and constructions that several solvers share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.core.placement import wasted_P
from placement.support.kernel import kernel


def capped_copies(
    load_E: npt.NDArray[np.floating], cluster: Cluster
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """One more copy for the expert with the highest load per copy, at most one a rank, until the slots are full.

    Returns:
        (the expert of each copy, one of every expert first, int64 [P]; how many copies each expert has, int64 [E]).
    """
    copies_E = np.ones(len(load_E), dtype=np.int64)
    extra = []
    for _ in range(cluster.num_slots - len(load_E)):
        hottest = int(np.argmax(np.where(copies_E < cluster.num_ranks, load_E / copies_E, -1.0)))
        copies_E[hottest] += 1
        extra.append(hottest)
    return np.concatenate([np.arange(len(load_E)), np.array(extra, dtype=np.int64)]), copies_E


def fill_wasted(
    phy2log_P: npt.NDArray[np.integer], num_ranks: int, load_E: npt.NDArray[np.floating]
) -> npt.NDArray[np.int32]:
    """Give every slot whose rank has its expert already to the expert with the highest load per copy that it lacks."""
    row, slots = np.array(phy2log_P, dtype=np.int32), len(phy2log_P) // num_ranks
    wasted = np.flatnonzero(wasted_P(row, num_ranks))
    copies_E = np.bincount(row, minlength=len(load_E)) - np.bincount(row[wasted], minlength=len(load_E))
    for slot in wasted.tolist():
        load = load_E / copies_E
        load[row[slot - slot % slots : slot - slot % slots + slots]] = -1.0
        row[slot] = load.argmax()
        copies_E[row[slot]] += 1
    return row


def separate_copies(
    phy2log_P: npt.NDArray[np.integer], cluster: Cluster, load_E: npt.NDArray[np.floating]
) -> npt.NDArray[np.int32]:
    """Swap slots until no rank holds an expert twice (engines fail on such maps, EPLB makes them: its issue #22).

    Each repair takes the swap that changes the two ranks' loads least, on the same node if there is one. Copies beyond
    one a rank, which cannot be separated, give way to the expert with the highest load per copy.
    """
    row = np.array(phy2log_P, dtype=np.int32)
    separate(row, cluster.num_ranks, cluster.gpus_per_node, np.ascontiguousarray(load_E, dtype=np.float64))
    return row


@kernel
def separate(row: npt.NDArray[np.int32], num_ranks: int, gpus_per_node: int, load_E: npt.NDArray[np.float64]) -> None:
    """`separate_copies` in place, for compiled code. Loops, for numba's sake, as in `eplb_row`."""
    num_slots, num_experts = len(row), len(load_E)
    slots = num_slots // num_ranks
    copies = np.zeros(num_experts, dtype=np.int64)
    for e in row:
        copies[e] += 1
    for e in range(num_experts):
        if copies[e] > num_ranks:
            kept = 0
            for p in range(num_slots):
                if row[p] != e:
                    continue
                if kept < num_ranks:
                    kept += 1
                    continue
                hottest, highest = 0, -1.0
                for other in range(num_experts):
                    load = load_E[other] / max(copies[other], 1)
                    if copies[other] < num_ranks and load > highest:
                        hottest, highest = other, load
                row[p] = hottest
                copies[e] -= 1
                copies[hottest] += 1
    per_copy = np.empty(num_experts)
    for e in range(num_experts):
        per_copy[e] = load_E[e] / max(copies[e], 1)
    holds = np.zeros((num_ranks, num_experts), dtype=np.int32)
    for p in range(num_slots):
        holds[p // slots, row[p]] += 1
    while True:
        p = num_slots - 1
        while p >= 0 and holds[p // slots, row[p]] == 1:
            p -= 1
        if p < 0:
            return
        mine, q = p // slots, -1
        for forced in (False, True):
            least = np.inf
            for other in range(num_slots):
                rank = other // slots
                # it may take the copy if its rank lacks the expert, and ours lacks its own
                if holds[rank, row[p]] or (holds[rank, row[other]] == 1 if forced else holds[mine, row[other]] > 0):
                    continue
                apart = 1e-9 if rank // gpus_per_node != mine // gpus_per_node else 0.0
                change = abs(per_copy[row[other]] - per_copy[row[p]]) + apart
                if change < least:
                    least, q = change, other
            if q >= 0:
                break
            # then every rank that lacks the expert holds only experts of ours, so one of them twice: each swap, the
            # forced one too, leaves fewer doubles than before, so the loop ends
        theirs = q // slots
        holds[mine, row[p]] -= 1
        holds[theirs, row[q]] -= 1
        row[p], row[q] = row[q], row[p]
        holds[mine, row[p]] += 1
        holds[theirs, row[q]] += 1
