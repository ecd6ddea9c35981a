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
    Masks,
    allowance,
    cooling_of,
    copy_row,
    random_below,
    random_unit,
)
from placement.support.kernel import inlined_kernel, inner_search_kernel, search_kernel

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
    copies_E = _copies(load_EB.max(axis=1), cluster.num_slots, cluster.num_ranks)
    order_E = np.argsort(-load_EB.max(axis=1) / copies_E, kind="stable")
    load_GB, row = np.zeros((cluster.num_ranks, load_EB.shape[1])), np.empty(cluster.num_slots, dtype=np.int32)
    pack(row, order_E, load_EB, copies_E, slowness_G, np.zeros(cluster.num_ranks, dtype=np.int64), load_GB)
    holds_EG = np.zeros((len(load_EB), cluster.num_ranks), dtype=np.bool_)
    holds_EG[row, np.arange(cluster.num_slots) // cluster.slots_per_gpu] = True
    books = (copies_E, holds_EG, np.empty_like(load_EB), load_GB, np.empty((TOP, load_EB.shape[1]), dtype=np.int64))
    anneal_rows(row, row.copy(), load_EB, slowness_G, *books, power, moves, np.array([seed % 2**64], dtype=np.uint64))
    return row


def _copies(hottest_E: Floats, num_slots: int, most: int) -> Ints:
    """Copies of every expert, 1 to `most`: slot by slot to the one whose hottest row has most a copy."""
    copies_E = np.ones(len(hottest_E), dtype=np.int64)
    for _ in range(num_slots - len(hottest_E)):
        copies_E[np.where(copies_E < most, hottest_E / copies_E, -1.0).argmax()] += 1
    return copies_E


# What follows makes no array and has loops in place of numpy's functions: both take numba seconds to compile.


@search_kernel
def pack(
    row: Ids, order_E: Ints, load_EB: Floats, copies_E: Ints, slowness_G: Floats, held_G: Ints, load_GB: Floats
) -> None:
    """Heaviest copy first, to the rank that has room, lacks the expert, and whose worst row is then least loaded.

    held_G, load_GB: slots that are filled and loads of the ranks, 0 at first.
    """
    ranks, boots = load_GB.shape
    slots = row.shape[0] // ranks
    for x in range(order_E.shape[0]):
        e = order_E[x]
        for _ in range(copies_E[e]):
            best, least = -1, np.inf
            for g in range(ranks):
                if held_G[g] == slots or _holds(row, g * slots, held_G[g], e):
                    continue
                worst = load_GB[g, 0] + load_EB[e, 0] / copies_E[e]
                for b in range(1, boots):
                    worst = max(worst, load_GB[g, b] + load_EB[e, b] / copies_E[e])
                if worst * slowness_G[g] < least:
                    best, least = g, worst * slowness_G[g]
            expert = e
            if best < 0:  # all ranks with room hold the expert: a full one takes it for one that the other lacks
                best, full = 0, 0
                for g in range(ranks):
                    best = g if held_G[g] < held_G[best] else best
                while _holds(row, full * slots, held_G[full], e):
                    full += 1
                p = full * slots
                while _holds(row, best * slots, held_G[best], row[p]):
                    p += 1
                expert = np.int64(row[p])
                row[p] = e
                for b in range(boots):
                    load_GB[full, b] += load_EB[e, b] / copies_E[e] - load_EB[expert, b] / copies_E[expert]
            row[best * slots + held_G[best]] = expert
            held_G[best] += 1
            for b in range(boots):
                load_GB[best, b] += load_EB[expert, b] / copies_E[expert]


@inlined_kernel
def _holds(row: Ids, start: int, held: int, expert: int) -> bool:
    found = False
    for p in range(start, start + held):
        found |= row[p] == expert
    return found


@search_kernel
def anneal_rows(
    row: Ids,
    best_row: Ids,
    load_EB: Floats,
    slowness_G: Floats,
    copies_E: Ints,
    holds_EG: npt.NDArray[np.bool_],
    each_EB: Floats,
    load_GB: Floats,
    top_TB: Ints,
    power: int,
    moves: int,
    state: Masks,
) -> None:
    """Anneal the map in place; ends with the best map seen.

    Args:
        row: the map; best_row: a copy.
        load_EB, slowness_G: what the map is judged by.
        copies_E, holds_EG: of the map.
        each_EB, load_GB, top_TB: loads of copies and ranks, and the ranks with most load, which are counted here.
        power, moves, state: of the mean over rows; that are proposed; of their random numbers.
    """
    num_slots, boots = row.shape[0], load_EB.shape[1]
    slots, experts = num_slots // slowness_G.shape[0], load_EB.shape[0]
    _rebuild(row, load_EB, slowness_G, copies_E, each_EB, load_GB, top_TB)
    cost = 0.0
    for b in range(boots):
        cost += _raised(load_GB[top_TB[0, b], b] * slowness_G[top_TB[0, b]], power)
    cost = (cost / boots) ** (1.0 / power)
    best, temperature = cost, max(HOT, HOT_OF_FEW / slots**2)
    cooling = cooling_of(temperature, COLD, moves)
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


@inner_search_kernel
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
    for g in range(load_GB.shape[0]):
        for b in range(load_GB.shape[1]):
            load_GB[g, b] = 0.0
    for p in range(row.shape[0]):
        for b in range(load_EB.shape[1]):
            load_GB[p // slots, b] += each_EB[row[p], b]
    _find_tops(load_GB, slowness_G, top_TB)


@inner_search_kernel
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


@inner_search_kernel
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


@inner_search_kernel
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


@inner_search_kernel
def _raised(value: float, power: int) -> float:
    """`value ** power`, the same to the last bit on every machine."""
    raised = value
    for _ in range(power - 1):
        raised *= value
    return raised
