"""All ways to share out items to units of equal size, and the best of them for sends and balance together."""

from __future__ import annotations

import numba as nb
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.int8]


@nb.njit(cache=True, nogil=True)
def all_ways(kind_X: Ints, size: int, num_ways: int) -> Bytes:
    """Unit of every item, int8 [ways, items], `size` items a unit; units of one kind are exchangeable: in one order."""
    num_units = len(kind_X)
    num_items = num_units * size
    ways = np.empty((num_ways, num_items), dtype=np.int8)
    at, held, found, i = np.full(num_items, -1, dtype=np.int8), np.zeros(num_units, dtype=np.int64), 0, 0
    while i >= 0:
        x = at[i]
        if x >= 0:
            held[x] -= 1
        x += 1
        while x < num_units:
            opens = held[x] == 0
            for y in range(x):
                if opens and held[y] == 0 and kind_X[y] == kind_X[x]:
                    opens = False
            if opens or 0 < held[x] < size:
                break
            x += 1
        if x == num_units:
            at[i] = -1
            i -= 1
            continue
        at[i] = x
        held[x] += 1
        if i < num_items - 1:
            i += 1
        else:
            ways[found] = at
            found += 1
    return ways


@nb.njit(cache=True, nogil=True)
def sends_of_ways(ways_WE: Bytes, sets_UK: npt.NDArray[np.int32], weight_U: Floats, fare_X: Floats) -> Floats:
    """Sum over sets of weight times the fares of the distinct units that they touch, float64 [W]."""
    sends_W = np.empty(len(ways_WE))
    for w in range(len(ways_WE)):
        unit_E, total = ways_WE[w], 0.0
        for u in range(len(sets_UK)):
            seen, fare = np.uint64(0), 0.0
            for k in range(sets_UK.shape[1]):
                bit = np.uint64(1) << np.uint64(unit_E[sets_UK[u, k]])
                if not seen & bit:
                    seen |= bit
                    fare += fare_X[unit_E[sets_UK[u, k]]]
            total += weight_U[u] * fare
        sends_W[w] = total
    return sends_W


@nb.njit(cache=True, nogil=True)
def peaks_of_ways(ways_WE: Bytes, load_EB: Floats, slowness_X: Floats, floor_B: Floats) -> tuple[Floats, Floats]:
    """(mean over b of the highest load times slowness of a unit, at least floor_B; the highest in column 0), [W]."""
    num_units, num_boots = len(slowness_X), load_EB.shape[1]
    mean_W, first_W = np.empty(len(ways_WE)), np.empty(len(ways_WE))
    load_XB = np.empty((num_units, num_boots))
    for w in range(len(ways_WE)):
        load_XB[:] = 0.0
        for e in range(load_EB.shape[0]):
            x = ways_WE[w, e]
            for b in range(num_boots):
                load_XB[x, b] += load_EB[e, b] * slowness_X[x]
        total = 0.0
        for b in range(num_boots):
            peak = floor_B[b]
            for x in range(num_units):
                peak = max(peak, load_XB[x, b])
            total += peak
        mean_W[w], first_W[w] = total / num_boots, load_XB[:, 0].max()
    return mean_W, first_W


@nb.njit(cache=True, nogil=True)
def best_rank_map(
    order_W: Ints,
    lower_W: Floats,
    ways_WE: Bytes,
    sends_W: Floats,
    split_NVI: Bytes,
    load_EB: Floats,
    slowness_NR: Floats,
    price: float,
    cap: float,
    best: float,
    steps: int,
) -> tuple[npt.NDArray[np.int32], float, int]:
    """(nodes' experts rank by rank, or nothing; objective; steps left: below 0, not all was looked at).

    The ways are gone through by rising lower bound, until it reaches the `best` objective that is known.
    split_NVI  int8 [N, V, I], the ways to split a node's I experts over its ranks; -1 where a node has fewer ways
    """
    num_nodes, num_splits, num_items = split_NVI.shape
    num_ranks, num_boots = slowness_NR.shape[1], load_EB.shape[1]
    item_NI = np.empty((num_nodes, num_items), dtype=np.int64)
    chosen_N, best_w = np.zeros(num_nodes, dtype=np.int64), -1
    best_N, at_N = np.zeros(num_nodes, dtype=np.int64), np.zeros(num_nodes, dtype=np.int64)
    kept_N, kept_NV = np.zeros(num_nodes, dtype=np.int64), np.empty((num_nodes, num_splits), dtype=np.int64)
    peak_NVB = np.empty((num_nodes, num_splits, num_boots))
    floor_NB = np.empty((num_nodes, num_boots))
    rest_NB, part_NB = np.empty((num_nodes + 1, num_boots)), np.zeros((num_nodes + 1, num_boots))
    load_R = np.empty(num_ranks)
    for w in order_W:
        if lower_W[w] >= best or steps < 0:
            break
        held_N = np.zeros(num_nodes, dtype=np.int64)
        for e in range(ways_WE.shape[1]):
            n = ways_WE[w, e]
            item_NI[n, held_N[n]] = e
            held_N[n] += 1
        for n in range(num_nodes):
            for b in range(num_boots):
                load = 0.0
                for i in range(num_items):
                    load += load_EB[item_NI[n, i], b]
                floor_NB[n, b] = load / (1 / slowness_NR[n]).sum()
        rest_NB[num_nodes] = 0.0
        for n in range(num_nodes - 1, -1, -1):
            rest_NB[n] = np.maximum(rest_NB[n + 1], floor_NB[n])
        even = sends_W[w] + price * rest_NB[0].sum() / num_boots  # were every node split perfectly
        empty = False
        for n in range(num_nodes):
            kept = 0
            for v in range(num_splits):
                if split_NVI[n, v, 0] < 0:
                    break
                steps -= 1
                excess = 0.0
                for b in range(num_boots):
                    load_R[:] = 0.0
                    for i in range(num_items):
                        load_R[split_NVI[n, v, i]] += load_EB[item_NI[n, i], b]
                    peak = 0.0
                    for r in range(num_ranks):
                        peak = max(peak, load_R[r] * slowness_NR[n, r])
                    peak_NVB[n, v, b] = peak
                    excess += max(peak - rest_NB[0, b], 0.0)
                    if even + price * excess / num_boots >= best or peak_NVB[n, v, 0] > cap:
                        break
                else:
                    kept_NV[n, kept] = v
                    kept += 1
            kept_N[n] = kept
            empty |= kept == 0
        if empty:
            continue
        n = 0
        at_N[0] = -1
        while n >= 0 and steps >= 0:
            at_N[n] += 1
            if at_N[n] == kept_N[n]:
                n -= 1
                continue
            steps -= 1
            v = kept_NV[n, at_N[n]]
            total = 0.0
            for b in range(num_boots):
                part_NB[n + 1, b] = max(part_NB[n, b], peak_NVB[n, v, b])
                total += max(part_NB[n + 1, b], rest_NB[n + 1, b])
            objective = sends_W[w] + price * total / num_boots
            if objective >= best:
                continue
            chosen_N[n] = v
            if n < num_nodes - 1:
                n += 1
                at_N[n] = -1
            else:
                best, best_w = objective, w
                best_N[:] = chosen_N
    row = np.empty(0, dtype=np.int32)
    if best_w >= 0:
        held_N = np.zeros(num_nodes, dtype=np.int64)
        held_NR = np.zeros((num_nodes, num_ranks), dtype=np.int64)
        row = np.empty(ways_WE.shape[1], dtype=np.int32)
        for e in range(ways_WE.shape[1]):
            n = ways_WE[best_w, e]
            r = split_NVI[n, best_N[n], held_N[n]]
            row[n * num_items + r * (num_items // num_ranks) + held_NR[n, r]] = e
            held_N[n] += 1
            held_NR[n, r] += 1
    return row, best, steps
