"""The assignment of a step to copies that leaves the busiest rank least, exactly (numba).

Assignments move from the busiest rank along paths: a group's from one rank that may serve it to another, whose own move
further on. Where no path leads to a rank that stays below the busiest one even with one assignment more, the ranks that
paths do lead to cannot have less in sum, whatever the assignment: the busiest one has the least that is possible.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.support.kernel import inner_kernel, kernel

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@kernel
def assign_step(
    count_J: Ints, ptr_J: Ints, rank_C: npt.NDArray[np.int32], single_G: Ints, slowness_G: Floats, share_C: Ints
) -> None:
    """Write how many assignments of its group each copy serves; deterministic, and exact for the busiest rank.

    count_J     int64 [J], assignments of each group
    ptr_J       the copies of group j are ptr_J[j] : ptr_J[j + 1]
    rank_C      rank of each copy
    single_G    int64 [G], what each rank serves besides
    slowness_G  1 / relative speed; a rank's load counts for as much more
    share_C     int64 [C], written
    """
    num_ranks = len(single_G)
    load_G = single_G.copy()
    group_C = np.empty(len(rank_C), dtype=np.int64)
    for j in range(len(count_J)):
        first, last = ptr_J[j], ptr_J[j + 1]
        group_C[first:last] = j
        share_C[first:last] = 0
        for c in range(first, last):  # evenly at first
            share_C[c] = count_J[j] // (last - first) + (1 if c - first < count_J[j] % (last - first) else 0)
            load_G[rank_C[c]] += share_C[c]
    of_rank_C = np.argsort(rank_C, kind="mergesort")
    ptr_G = np.searchsorted(rank_C[of_rank_C], np.arange(num_ranks + 1))
    from_G, to_G, queue_G = np.empty(num_ranks, np.int64), np.empty(num_ranks, np.int64), np.empty(num_ranks, np.int64)
    while True:
        busiest = int(np.argmax(load_G * slowness_G))
        most = load_G[busiest] * slowness_G[busiest]
        found = _reach(busiest, ptr_J, rank_C, group_C, of_rank_C, ptr_G, share_C, from_G, to_G, queue_G)
        best = busiest
        for i in range(1, found):
            rank = queue_G[i]
            if (load_G[rank] + 1) * slowness_G[rank] < most and (
                best == busiest or load_G[rank] * slowness_G[rank] < load_G[best] * slowness_G[best]
            ):
                best = rank
        if best == busiest:
            return
        gap = most - load_G[best] * slowness_G[best]
        moved = max(np.int64(gap / (slowness_G[busiest] + slowness_G[best])), np.int64(1))
        rank = best
        while rank != busiest:
            moved = min(moved, share_C[from_G[rank]])
            rank = np.int64(rank_C[from_G[rank]])
        rank = best
        while rank != busiest:
            share_C[from_G[rank]] -= moved
            share_C[to_G[rank]] += moved
            rank = np.int64(rank_C[from_G[rank]])
        load_G[busiest] -= moved
        load_G[best] += moved


@inner_kernel
def _reach(
    start: int,
    ptr_J: Ints,
    rank_C: npt.NDArray[np.int32],
    group_C: Ints,
    of_rank_C: Ints,
    ptr_G: Ints,
    share_C: Ints,
    from_G: Ints,
    to_G: Ints,
    queue_G: Ints,
) -> int:
    """Write the ranks that paths from `start` lead to, nearest first, and each one's last step: from copy to copy."""
    seen_G = np.zeros(len(from_G), dtype=np.bool_)
    seen_G[start] = True
    queue_G[0] = start
    done, found = 0, 1
    while done < found:
        rank = queue_G[done]
        done += 1
        for i in range(ptr_G[rank], ptr_G[rank + 1]):
            copy = of_rank_C[i]
            if share_C[copy] == 0:
                continue
            for other in range(ptr_J[group_C[copy]], ptr_J[group_C[copy] + 1]):
                further = rank_C[other]
                if not seen_G[further]:
                    seen_G[further] = True
                    from_G[further], to_G[further] = copy, other
                    queue_G[found] = further
                    found += 1
    return found
