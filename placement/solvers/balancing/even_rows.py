"""One map for several rows of loads, such as those of captures, domains or drawn requests: balance alone.

Copies go to the expert with the highest load per copy under any row, the heaviest first to the rank whose worst row is
then least loaded. Simulated annealing then lowers the power mean over rows of the most loaded rank: with power 1 their
mean, with a high one nearly the worst. Every copy serves an even share; an expert's load under a row is that of a mean
rank times its share.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.solvers.annealing.anneal_common import (
    Floats,
    Ids,
    Ints,
    allowance,
    cooling_of,
    copy_row,
    random_below,
    random_unit,
)
from placement.support.kernel import inlined_kernel, inner_kernel, kernel

MOVES = 100_000
HOT, COLD = 0.02, 0.0005  # first and last temperature, in imbalance
HOT_OF_FEW = 0.3  # the first, times the square of the slots, on ranks of a few slots, where each move is a large one
COPY_SHARE = 0.3  # of the moves, where there are copies: a slot gets another expert
WORST = 8  # a power that is nearly the worst row
TOP = 3  # ranks of a row that are known by load: of them one at least is none of the two that a swap changes


def even_row(load_BE: Floats, cluster: Cluster, *, power: int, moves: int, seed: int) -> Ids:
    """A map of one layer that is balanced under all rows, int32 [P].

    Args:
        load_BE: shares of load of each expert under every row, [B, E]; a row sums to 1.
        cluster: where the slots are.
        power: of the mean over rows, 1 or more; see `WORST`.
        moves: that are proposed.
        seed: of the moves.
    """
    load_EB = np.ascontiguousarray(load_BE.T) * cluster.num_ranks
    slowness_G = 1.0 / cluster.speed_G()
    copies_E = _copies(load_EB, cluster.num_slots, cluster.num_ranks)
    row = _packed(load_EB, copies_E, slowness_G, cluster.slots_per_gpu)
    _anneal(row, load_EB, slowness_G, power, moves, np.uint64(seed % 2**64))
    return row


@kernel
def _copies(load_EB: Floats, num_slots: int, most: int) -> Ints:
    """Copies of every expert, 1 to `most`: slot by slot to the one whose hottest row has most a copy."""
    copies_E = np.ones(load_EB.shape[0], dtype=np.int64)
    for _ in range(num_slots - load_EB.shape[0]):
        best, highest = 0, -1.0
        for e in range(load_EB.shape[0]):
            each = load_EB[e].max() / copies_E[e]
            if copies_E[e] < most and each > highest:
                best, highest = e, each
        copies_E[best] += 1
    return copies_E


@kernel
def _packed(load_EB: Floats, copies_E: Ints, slowness_G: Floats, slots: int) -> Ids:
    """Heaviest copy first, to the rank that has room, lacks the expert, and whose worst row is then least loaded."""
    ranks = slowness_G.shape[0]
    row_GS = np.empty((ranks, slots), dtype=np.int32)
    held_G = np.zeros(ranks, dtype=np.int64)
    load_GB = np.zeros((ranks, load_EB.shape[1]))
    weight_E = np.empty(load_EB.shape[0])
    for e in range(load_EB.shape[0]):
        weight_E[e] = load_EB[e].max() / copies_E[e]
    for e in np.argsort(-weight_E, kind="mergesort"):
        each_B = load_EB[e] / copies_E[e]
        for _ in range(copies_E[e]):
            best, least = -1, np.inf
            for g in range(ranks):
                if held_G[g] == slots or _holds(row_GS[g], held_G[g], e):
                    continue
                worst = (load_GB[g] + each_B).max() * slowness_G[g]
                if worst < least:
                    best, least = g, worst
            expert = e
            if best < 0:  # all ranks with room hold the expert: a full one takes it for one that the other lacks
                best, full = int(np.argmin(held_G)), 0
                while _holds(row_GS[full], held_G[full], e):
                    full += 1
                s = 0
                while _holds(row_GS[best], held_G[best], row_GS[full, s]):
                    s += 1
                expert = row_GS[full, s]
                row_GS[full, s] = e
                load_GB[full] += each_B - load_EB[expert] / copies_E[expert]
            row_GS[best, held_G[best]] = expert
            held_G[best] += 1
            load_GB[best] += load_EB[expert] / copies_E[expert]
    return row_GS.ravel()


@inlined_kernel
def _holds(row_S: Ids, held: int, expert: int) -> bool:
    found = False
    for s in range(held):
        found |= row_S[s] == expert
    return found


@kernel
def _anneal(row: Ids, load_EB: Floats, slowness_G: Floats, power: int, moves: int, seed: np.uint64) -> None:
    """Anneal the map in place; ends with the best map seen."""
    ranks, num_slots, boots = slowness_G.shape[0], row.shape[0], load_EB.shape[1]
    slots, experts = num_slots // ranks, load_EB.shape[0]
    copies_E = np.bincount(row, minlength=experts)
    each_EB, load_GB = np.empty_like(load_EB), np.empty((ranks, boots))
    top_TB = np.empty((TOP, boots), dtype=np.int64)
    holds_EG = np.zeros((experts, ranks), dtype=np.bool_)
    for p in range(num_slots):
        holds_EG[row[p], p // slots] = True
    _rebuild(row, load_EB, slowness_G, copies_E, each_EB, load_GB, top_TB)
    best_row = row.copy()
    cost = 0.0
    for b in range(boots):
        cost += _raised(load_GB[top_TB[0, b], b] * slowness_G[top_TB[0, b]], power)
    cost = (cost / boots) ** (1.0 / power)
    best, temperature = cost, max(HOT, HOT_OF_FEW / slots**2)
    cooling = cooling_of(temperature, COLD, moves)
    state = np.array([seed], dtype=np.uint64)
    for _ in range(moves):
        temperature *= cooling
        p = random_below(state, num_slots)
        g, u = p // slots, row[p]
        if num_slots > experts and random_unit(state) < COPY_SHARE:
            v = random_below(state, experts)
            if copies_E[u] == 1 or holds_EG[v, g]:
                continue
            most = _raised(cost + allowance(temperature, state), power) * boots
            total = _sum_with_copy(u, v, g, load_EB, each_EB, load_GB, slowness_G, copies_E, holds_EG, power, most)
            if total > most:
                continue
            row[p] = v
            holds_EG[u, g], holds_EG[v, g] = False, True
            copies_E[u] -= 1
            copies_E[v] += 1
            _rebuild(row, load_EB, slowness_G, copies_E, each_EB, load_GB, top_TB)
        else:
            q = random_below(state, num_slots)
            h, v = q // slots, row[q]
            if h == g or v == u or holds_EG[v, g] or holds_EG[u, h]:
                continue
            most = _raised(cost + allowance(temperature, state), power) * boots
            total = _sum_with_swap(u, v, g, h, each_EB, load_GB, slowness_G, top_TB, power, most)
            if total > most:
                continue
            row[p], row[q] = v, u
            holds_EG[u, g], holds_EG[v, g], holds_EG[u, h], holds_EG[v, h] = False, True, True, False
            for b in range(boots):
                more = each_EB[v, b] - each_EB[u, b]
                load_GB[g, b] += more
                load_GB[h, b] -= more
            _find_tops(load_GB, slowness_G, top_TB)
        cost = (total / boots) ** (1.0 / power)
        if cost < best:
            best = cost
            copy_row(row, best_row)
    copy_row(best_row, row)


@inner_kernel
def _rebuild(
    row: Ids,
    load_EB: Floats,
    slowness_G: Floats,
    copies_E: Ints,
    each_EB: Floats,
    load_GB: Floats,
    top_TB: Ints,
) -> None:
    """All books of a map but which rank holds what."""
    slots = row.shape[0] // slowness_G.shape[0]
    for e in range(load_EB.shape[0]):
        for b in range(load_EB.shape[1]):
            each_EB[e, b] = load_EB[e, b] / copies_E[e]
    load_GB[:] = 0.0
    for p in range(row.shape[0]):
        for b in range(load_EB.shape[1]):
            load_GB[p // slots, b] += each_EB[row[p], b]
    _find_tops(load_GB, slowness_G, top_TB)


@inner_kernel
def _find_tops(load_GB: Floats, slowness_G: Floats, top_TB: Ints) -> None:
    """The most loaded ranks of every row; where there are fewer than TOP, the last again."""
    for b in range(load_GB.shape[1]):
        first, second, third = -1, -1, -1
        for g in range(load_GB.shape[0]):
            load = load_GB[g, b] * slowness_G[g]
            if first < 0 or load > load_GB[first, b] * slowness_G[first]:
                first, second, third = g, first, second
            elif second < 0 or load > load_GB[second, b] * slowness_G[second]:
                second, third = g, second
            elif third < 0 or load > load_GB[third, b] * slowness_G[third]:
                third = g
        second = first if second < 0 else second
        top_TB[0, b], top_TB[1, b], top_TB[2, b] = first, second, second if third < 0 else third


@inner_kernel
def _sum_with_swap(
    u: int,
    v: int,
    g: int,
    h: int,
    each_EB: Floats,
    load_GB: Floats,
    slowness_G: Floats,
    top_TB: Ints,
    power: int,
    most: float,
) -> float:
    """Sum over rows of the raised peaks if u on rank g and v on rank h trade places; ends where it is above `most`."""
    total = 0.0
    for b in range(load_GB.shape[1]):
        more = each_EB[v, b] - each_EB[u, b]
        peak = max((load_GB[g, b] + more) * slowness_G[g], (load_GB[h, b] - more) * slowness_G[h])
        for t in range(TOP):
            other = top_TB[t, b]
            if other != g and other != h:
                peak = max(peak, load_GB[other, b] * slowness_G[other])
                break
        total += _raised(peak, power)
        if total > most:
            break
    return total


@inner_kernel
def _sum_with_copy(
    u: int,
    v: int,
    g: int,
    load_EB: Floats,
    each_EB: Floats,
    load_GB: Floats,
    slowness_G: Floats,
    copies_E: Ints,
    holds_EG: npt.NDArray[np.bool_],
    power: int,
    most: float,
) -> float:
    """The same if v takes a slot of u on rank g: other copies of u then serve more, those of v less."""
    total = 0.0
    for b in range(load_GB.shape[1]):
        less, more = load_EB[v, b] / (copies_E[v] + 1), load_EB[u, b] / (copies_E[u] - 1)
        fewer, further = less - each_EB[v, b], more - each_EB[u, b]
        peak = (load_GB[g, b] - each_EB[u, b] + less) * slowness_G[g]
        for h in range(load_GB.shape[0]):
            if h != g:
                load = load_GB[h, b] + (further if holds_EG[u, h] else 0.0) + (fewer if holds_EG[v, h] else 0.0)
                peak = max(peak, load * slowness_G[h])
        total += _raised(peak, power)
        if total > most:
            break
    return total


@inlined_kernel
def _raised(value: float, power: int) -> float:
    """`value ** power`, the same to the last bit on every machine."""
    raised = value
    for _ in range(power - 1):
        raised *= value
    return raised
