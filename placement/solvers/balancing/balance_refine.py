"""Refinement of a map by load alone: swaps at the most loaded rank, and other counts of copies."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.support.kernel import inner_kernel

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Row = npt.NDArray[np.int32]

LEAST_GAIN = 1e-12  # relative: below it a change of the peak is rounding


@inner_kernel
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
        load_G = each_P.reshape(num_ranks, slots).sum(axis=1)  # summed anew, so that rounding does not grow
    return work


@inner_kernel
def _best_swap(
    row: Row, g: int, load_G: Floats, slowness_G: Floats, each_P: Floats, holds_EG: npt.NDArray[np.bool_], enough: float
) -> tuple[int, int, int]:
    """Slots of rank g and of another whose swap makes the higher of both lowest (-1: none below); swaps looked at."""
    slots = len(row) // len(load_G)
    best_p, best_q, least, looked = -1, -1, enough, 0
    lightest = np.argmin(load_G * slowness_G)  # tried first: its gain rules out most other ranks
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


@inner_kernel
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
