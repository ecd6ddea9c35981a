"""Maps of one layer by load alone: shares of slots, packing, and the best of several starts.

A rank's load is the sum of load / copies over the experts that it holds; times its slowness it is what is evened out.
Slots of a rank are contiguous, as everywhere.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.solvers.balancing.balance_refine import LEAST_GAIN, refine
from placement.support.kernel import inner_kernel, kernel

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Row = npt.NDArray[np.int32]

CLOSE = 1e-3  # a layer so far above the floor of all maps tries further counts of copies
BIASES = (0.5, 1.0)  # further counts: the rules of apportionment of Webster and of Jefferson,
SPARES = 8  # and the greedy rule for some eighths of the redundant slots, the rest for the coldest experts


@inner_kernel
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


@kernel
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


@kernel
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


@kernel
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


@inner_kernel
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
