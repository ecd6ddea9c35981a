"""Maps of one layer by load alone: shares of slots, packing, and swaps at the most loaded rank.

A rank's load is the sum of load / copies over the experts that it holds; times its slowness it is what is evened out.
Slots of a rank are contiguous, as everywhere.
"""

from __future__ import annotations

import numba as nb
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Row = npt.NDArray[np.int32]

LEAST_GAIN = 1e-12  # relative: below it a change of the peak is rounding
CLOSE = 1e-3  # a layer this far above what any map can have is worth further counts of copies
BIASES = (0.5, 1.0)  # of those: Webster's and Jefferson's rule of apportionment
SPARES = 8  # and the greedy rule for some eighths of the redundant slots, the others for the coldest experts


@nb.njit(cache=True, nogil=True)
def share_slots(load_E: Floats, num_slots: int, most: int, bias: float, spare: int) -> Ints:
    """Copies of every expert, 1 to `most`: slot by slot to the expert with the highest load / (copies + bias).

    With bias 0 the hottest copy is as cool as can be. The last `spare` slots go to the coldest experts instead: few hot
    copies, one a rank, may pack better than many.
    """
    copies_E = np.ones(len(load_E), dtype=np.int64)
    redundant = num_slots - len(load_E)
    if redundant == 0:
        return copies_E
    ratio_E = load_E / (1 + bias)
    if most == 1:
        ratio_E[:] = -1.0
    for _ in range(redundant - spare):
        e = np.argmax(ratio_E)
        copies_E[e] += 1
        ratio_E[e] = load_E[e] / (copies_E[e] + bias) if copies_E[e] < most else -1.0
    if spare:
        for e in np.argsort(load_E, kind="mergesort"):
            more = min(spare, most - copies_E[e])
            copies_E[e] += more
            spare -= more
    return copies_E


@nb.njit(cache=True, nogil=True)
def pack(load_E: Floats, copies_E: Ints, slowness_G: Floats, slots: int) -> Row:
    """Heaviest copy first, to the rank that has room, lacks the expert and is then least loaded."""
    num_ranks = len(slowness_G)
    row_GS = np.empty((num_ranks, slots), dtype=np.int32)
    held_G = np.zeros(num_ranks, dtype=np.int64)
    load_G = np.zeros(num_ranks)
    holds_EG = np.zeros((len(load_E), num_ranks), dtype=np.bool_)
    each_E = load_E / copies_E
    for e in np.argsort(-each_E, kind="mergesort"):
        for _ in range(copies_E[e]):
            best, least = -1, np.inf
            for g in range(num_ranks):
                if held_G[g] < slots and not holds_EG[e, g]:
                    peak = (load_G[g] + each_E[e]) * slowness_G[g]
                    if peak < least:
                        best, least = g, peak
            expert = e
            if best < 0:  # all ranks with room hold the expert: a full one takes it for one that the other lacks
                best = int(np.argmin(held_G))
                full = np.argmin(holds_EG[e])
                s = 0
                while holds_EG[row_GS[full, s], best]:
                    s += 1
                expert = row_GS[full, s]
                row_GS[full, s] = e
                holds_EG[expert, full], holds_EG[e, full] = False, True
                load_G[full] += each_E[e] - each_E[expert]
            row_GS[best, held_G[best]] = expert
            held_G[best] += 1
            holds_EG[expert, best] = True
            load_G[best] += each_E[expert]
    return row_GS.ravel()


@nb.njit(cache=True, nogil=True)
def highest(row: Row, load_E: Floats, slowness_G: Floats) -> float:
    """Load times slowness of the most loaded rank; every copy serves an even share."""
    slots = len(row) // len(slowness_G)
    each_E = load_E / np.maximum(np.bincount(row, minlength=len(load_E)), 1)
    most = 0.0
    for g in range(len(slowness_G)):
        load = 0.0
        for p in range(g * slots, (g + 1) * slots):
            load += each_E[row[p]]
        most = max(most, load * slowness_G[g])
    return most


@nb.njit(cache=True, nogil=True)
def refine(row: Row, load_E: Floats, slowness_G: Floats, target: float, work: int) -> int:
    """Lower the most loaded rank in place, by swaps, and by another count of copies where no swap helps.

    Ends where nothing helps, where no rank is above `target`, or after `work` candidates; returns those not looked at.
    """
    num_ranks, num_experts = len(slowness_G), len(load_E)
    slots = len(row) // num_ranks
    copies_E = np.bincount(row, minlength=num_experts)
    each_E = load_E / np.maximum(copies_E, 1)
    holds_EG = np.zeros((num_experts, num_ranks), dtype=np.bool_)
    load_G, each_P = np.zeros(num_ranks), each_E[row]
    for p in range(len(row)):
        holds_EG[row[p], p // slots] = True
        load_G[p // slots] += each_E[row[p]]
    while work > 0:
        g = int(np.argmax(load_G * slowness_G))
        peak = load_G[g] * slowness_G[g]
        if peak <= target:
            break
        enough = peak * (1 - LEAST_GAIN)
        p, q, looked = _best_swap(row, g, load_G, slowness_G, each_P, holds_EG, enough)
        work -= num_ranks + looked
        if p >= 0:
            h, a, b = q // slots, row[p], row[q]
            row[p], row[q] = b, a
            each_P[p], each_P[q] = each_P[q], each_P[p]
            holds_EG[a, g], holds_EG[b, g], holds_EG[a, h], holds_EG[b, h] = False, True, True, False
            load_G[g] += each_E[b] - each_E[a]
            load_G[h] += each_E[a] - each_E[b]
            continue
        q, a = _best_recount(row, g, load_E, load_G, slowness_G, each_E, copies_E, holds_EG, enough)
        work -= slots * (len(row) + num_experts)
        if q < 0:
            break
        h, b = q // slots, row[q]
        row[q] = a
        holds_EG[a, h], holds_EG[b, h] = True, False
        copies_E[a] += 1
        copies_E[b] -= 1
        each_E[a], each_E[b] = load_E[a] / copies_E[a], load_E[b] / copies_E[b]
        each_P = each_E[row]
        load_G = each_P.reshape(num_ranks, slots).sum(axis=1)  # afresh, so that rounding does not add up
    return work


@nb.njit(cache=True, nogil=True)
def _best_swap(
    row: Row, g: int, load_G: Floats, slowness_G: Floats, each_P: Floats, holds_EG: npt.NDArray[np.bool_], enough: float
) -> tuple[int, int, int]:
    """Slots of rank g and of another whose swap makes the higher of both lowest (-1: none below); swaps looked at."""
    slots = len(row) // len(load_G)
    best_p, best_q, least, looked = -1, -1, enough, 0
    lightest = np.argmin(load_G * slowness_G)  # first: what it gives rules out most others
    for i in range(len(load_G)):
        h = lightest if i == 0 else (i - 1 if i <= lightest else i)
        # no swap does better than to even the two out
        if h == g or (load_G[g] + load_G[h]) / (1 / slowness_G[g] + 1 / slowness_G[h]) >= least:
            continue
        looked += slots * slots
        # what must go from g to h for both to end below `least`
        low, high = load_G[g] - least / slowness_G[g], least / slowness_G[h] - load_G[h]
        for p in range(g * slots, (g + 1) * slots):
            mine = each_P[p]
            for q in range(h * slots, (h + 1) * slots):
                more = mine - each_P[q]
                if low < more < high and not holds_EG[row[p], h] and not holds_EG[row[q], g]:
                    peak = max((load_G[g] - more) * slowness_G[g], (load_G[h] + more) * slowness_G[h])
                    if peak < least:
                        best_p, best_q, least = p, q, peak
                        low, high = load_G[g] - least / slowness_G[g], least / slowness_G[h] - load_G[h]
    return best_p, best_q, looked


@nb.njit(cache=True, nogil=True)
def _best_recount(
    row: Row,
    g: int,
    load_E: Floats,
    load_G: Floats,
    slowness_G: Floats,
    each_E: Floats,
    copies_E: Ints,
    holds_EG: npt.NDArray[np.bool_],
    enough: float,
) -> tuple[int, int]:
    """Slot and its new expert: g gets a lighter one, or one of g's gets a copy elsewhere. (-1, -1): nothing helps."""
    slots = len(row) // len(load_G)
    best_q, best_a, least = -1, -1, enough
    for q in range(len(row)):
        h, b = q // slots, row[q]
        if copies_E[b] == 1:
            continue
        fewer = load_E[b] / (copies_E[b] - 1) - each_E[b]
        for i in range(len(load_E) if h == g else slots):
            a = i if h == g else row[g * slots + i]
            if holds_EG[a, h]:
                continue
            each = load_E[a] / (copies_E[a] + 1)
            peak = (load_G[h] - each_E[b] + each) * slowness_G[h]
            for rank in range(len(load_G)):
                if peak >= least:
                    break
                if rank != h:
                    load = load_G[rank] + (fewer if holds_EG[b, rank] else 0.0)
                    load += each - each_E[a] if holds_EG[a, rank] else 0.0
                    peak = max(peak, load * slowness_G[rank])
            if peak < least:
                best_q, best_a, least = q, a, peak
    return best_q, best_a


@nb.njit(cache=True, nogil=True)
def balanced_row(
    load_E: Floats,
    slowness_G: Floats,
    slots: int,
    starts_XP: npt.NDArray[np.int32],
    enough: float,
    beat: float,
    work: int,
) -> Row:
    """Valid map of a layer, never less balanced than any of the `starts_XP`, which must be valid.

    Load times slowness below `enough` is not improved on (0: as even as can be); `work` is looked at once more where it
    is above `beat`.
    """
    num_ranks, num_slots = len(slowness_G), len(slowness_G) * slots
    copies_E = share_slots(load_E, num_slots, num_ranks, 0.0, 0)
    # the least that any map can have: all ranks alike, and some rank its hottest copy at least
    least_E = load_E / copies_E
    target = max(load_E.sum() / (1 / slowness_G).sum(), least_E.max() * slowness_G.min(), enough) * (1 + LEAST_GAIN)
    rows_XP = np.empty((1 + len(starts_XP), num_slots), dtype=np.int32)
    rows_XP[0] = pack(load_E, copies_E, slowness_G, slots)
    rows_XP[1:] = starts_XP
    best, least = refine_all(rows_XP, load_E, slowness_G, target, work)
    redundant = num_slots - len(load_E)
    if redundant and least > target * (1 + CLOSE):
        rows_XP = np.empty((len(BIASES) + SPARES, num_slots), dtype=np.int32)
        for x in range(len(rows_XP)):
            bias = BIASES[x] if x < len(BIASES) else 0.0
            spare = 0 if x < len(BIASES) else redundant * (x - len(BIASES) + 1) // SPARES
            rows_XP[x] = pack(load_E, share_slots(load_E, num_slots, num_ranks, bias, spare), slowness_G, slots)
        other, peak = refine_all(rows_XP, load_E, slowness_G, target, work)
        if peak < least:
            best, least = other, peak
    if least > beat:
        refine(best, load_E, slowness_G, target, 20 * work)
    return best


@nb.njit(cache=True, nogil=True)
def refine_all(
    rows_XP: npt.NDArray[np.int32], load_E: Floats, slowness_G: Floats, target: float, work: int
) -> tuple[Row, float]:
    """The most balanced of the maps and its `highest`: the best is refined first, until `work` is used up."""
    peak_X = np.empty(len(rows_XP))
    for x in range(len(rows_XP)):
        peak_X[x] = highest(rows_XP[x], load_E, slowness_G)
    best, least = 0, np.inf
    for x in np.argsort(peak_X, kind="mergesort"):
        if least <= target:
            break
        work = refine(rows_XP[x], load_E, slowness_G, target, work)
        peak = highest(rows_XP[x], load_E, slowness_G)
        if peak < least:
            best, least = x, peak
    row: Row = rows_XP[best].copy()
    return row, least
