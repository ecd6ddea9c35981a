"""The side of the sets where a set has hundreds of splits: many sets at once, by a recursion over subsets.

All partitions of a set start with a block that holds its first element; what is left is partitioned further. So the
sum over all partitions of the products of their blocks' weights takes some 1,600 products for 8 experts on 4 nodes,
where there are 2,795 partitions, and so does the least sum of their blocks' costs. Its derivative by a block's weight
says how likely the block is. Every step is the same for all sets: the innermost loops run over `LANES` of them, in
single precision; what that may round away is taken off the sum.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from placement.bounds.dual_ascent import Adam, ascended
from placement.bounds.set_partitions import SetSide, features
from placement.support.kernel import kernel

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

LANES = 64
LEAST_SMOOTHING = 0.02  # with less smoothing, too many weights leave the range of floats
ROUNDING = float(np.finfo(np.float32).eps)  # twice the error of an addition, relative to all that is added up
Single = np.float32
# of 2; what weighs less counts for nothing, with bits that are those of 0
MOST_EXPONENT, LEAST_EXPONENT, NO_EXPONENT = np.float32(126.0), np.float32(-125.0), np.float32(-127.0)
MOST_WEIGHT = np.float32(2.0**126)
MOST_SEEN = 64.0  # no block is in more nodes; more is an overflow
BITS_OF_E = np.float32(1.44269504)
# 2^z for z in 0..1, by powers
POWERS = tuple(np.float32(power) for power in (0.69314718, 0.24022650, 0.05550410, 0.00961812, 0.00133335))


class Recursion(NamedTuple):
    """How the splits of a set are put together: rows of numbers, one a set, each of two rows before it.

    link_O3   int32 [O, 3]: a row of links is that row of links and that feature; row 0 of links is 0
    block_O3  int32 [O, 3]: the features of a subset cost those of that smaller subset and that row of links
    subset_Q  int32 [Q], of which subset of the set each of the first rows is the cost: a block of so many copies,
    copies_Q  float32 [Q], which costs
    cost_Q    float32 [Q] beside its features
    share_Q   float32 [Q], share of the set's elements that it holds
    term_T3   int32 [T, 3]: one way to get a row is to put these two together; ascending. Row Q is nothing, the last
              row the whole set
    rows      how many there are
    elements  how many a set has
    most_copies  the largest of copies_Q
    """

    link_O3: Ints
    block_O3: Ints
    subset_Q: Ints
    copies_Q: Singles
    cost_Q: Singles
    share_Q: Singles
    term_T3: Ints
    rows: int
    elements: int
    most_copies: float


def _blocks(left: int, first: int, largest: int, counted: int) -> list[int]:
    """The subsets of what is left that hold `first`, of at most `largest` elements that are counted."""
    rest, found = left & ~first, []
    company = rest
    while True:
        if ((first | company) & counted).bit_count() <= largest:
            found.append(first | company)
        if company == 0:
            return found
        company = (company - 1) & rest


@lru_cache(maxsize=8)
def recursion(elements: int, most_blocks: int, largest: int, *, home: bool = False, hosts: bool = False) -> Recursion:
    """Of the splits of so many elements into at most `most_blocks` blocks of at most `largest`.

    home: the last element is not counted in the size of a block. hosts: blocks may have more copies, as `host_splits`
    has them.
    """
    counted = (1 << elements - home) - 1
    whole = (1 << elements) - 1
    blocks: dict[tuple[int, int, float], int] = {}
    states: dict[tuple[int, int, float], int] = {(0, 0, 0.0): 0}
    terms: list[tuple[int, int, int]] = []  # of a state: a block and a state
    pairs: list[tuple[int, int, int]] = []  # two states

    def block(subset: int, copies: int, cost: float) -> int:
        return blocks.setdefault((subset, copies, cost), len(blocks))

    def visit(left: int, most: int, cost: float) -> int | None:
        """The number of what is left, or None if that does not fit so many blocks, each of that cost."""
        if left == 0:
            return 0
        if most == 0:
            return None
        if (left, most, cost) not in states:
            found = []
            for subset in _blocks(left, left & -left, largest, counted):
                further = visit(left ^ subset, most - 1, cost)
                if further is not None:
                    found.append((block(subset, 1, cost), further))
            if not found:
                return None
            states[left, most, cost] = len(states)
            terms.extend((states[left, most, cost], first, further) for first, further in found)
        return states[left, most, cost]

    def halves(most: int) -> int | None:
        """As `visit(whole, most, 0.0)`, put together from two that are known."""
        first_half, second_half = most - most // 2, most // 2
        found = []
        for subset in _blocks(whole, 1, elements, counted):
            one, other = visit(subset, first_half, 0.0), visit(whole ^ subset, second_half, 0.0)
            if one is not None and other is not None:
                found.append((one, other))
        if not found:
            return None
        number = states[whole, most, 0.0] = len(states)
        pairs.extend((number, one, other) for one, other in found)
        return number

    if not hosts or home:
        visit(whole, most_blocks, 1.0)
    else:
        found: list[tuple[int, int | None]] = []  # blocks that cost nothing may be split further, so no count is exact
        for count in range(1, min(most_blocks, elements) + 1):
            together = visit(whole, count, 0.0) if count < 4 else halves(count)
            found.append((block(0, 0, count * (1 - 1 / most_blocks)), together))
            for subset in _blocks(whole, 0, largest, counted) if count < most_blocks else []:
                if subset:
                    copies = block(subset, most_blocks - count + 1, count - 1.0)
                    found.append((copies, visit(whole ^ subset, count - 1, 0.0)))
        terms.extend((len(states), first, further) for first, further in found if further is not None)
        states[whole, 0, -1.0] = len(states)
    count = len(blocks)
    link_O3, block_O3 = _features_of_subsets(elements, features(elements - home, hosts=hosts, home=home))
    subset_Q, copies_Q, cost_Q = zip(*blocks, strict=True) if blocks else ((), (), ())
    numbered = [(state + count, first, further + count) for state, first, further in terms]
    numbered += [(state + count, one + count, other + count) for state, one, other in pairs]
    term_T3 = np.array(sorted(numbered), dtype=np.int32).reshape(-1, 3)
    return Recursion(
        link_O3,
        block_O3,
        np.array(subset_Q, dtype=np.int32),
        np.array(copies_Q, dtype=np.float32),
        np.array(cost_Q, dtype=np.float32),
        np.array([subset.bit_count() / elements for subset in subset_Q], dtype=np.float32),
        term_T3,
        count + len(states),
        elements,
        float(max(copies_Q, default=1)),
    )


def _features_of_subsets(elements: int, masks: list[int]) -> tuple[Ints, Ints]:
    """`Recursion.link_O3` and `.block_O3`. A link is what the features of a subset's first element, with the others,
    cost: those with some of the others, and one more."""
    feature_of = {mask: f for f, mask in enumerate(masks)}
    links: dict[tuple[int, int], int] = {}
    link_rows: list[tuple[int, int, int]] = []
    block_rows: list[tuple[int, int, int]] = []
    for subset in range(1, 1 << elements):
        first = subset & -subset
        rest = subset ^ first
        added = rest & -rest if rest else 0
        before = links.get((first, rest ^ added), 0) if rest else 0
        feature = feature_of.get(first | added)
        if feature is not None:
            links[first, rest] = len(link_rows) + 1
            link_rows.append((len(link_rows) + 1, before, feature))
        elif before:
            links[first, rest] = before
        block_rows.append((subset, rest, links.get((first, rest), 0)))
    return np.array(link_rows, dtype=np.int32).reshape(-1, 3), np.array(block_rows, dtype=np.int32)


@kernel
def ascend_batches(
    side: SetSide,
    steps: Recursion,
    theta_UF: Floats,
    adam: Adam,
    shared_V: Floats,
    smoothing: float,
    stride: float,
) -> tuple[float, float]:
    """A step uphill of all multipliers, in place; none if `stride` is 0.

    Returns what `ascend_sets` does, of those before: the sum is not above the exact one.
    """
    cell_UF, weight_U, least_F = side.cell_UF, side.weight_U, side.splits.least_F
    link_O3, block_O3, subset_Q, copies_Q, cost_Q, share_Q, term_T3 = steps[:7]
    first_UF, second_UF, memory = adam
    num_features, entries, whole = cell_UF.shape[1], subset_Q.shape[0], steps.rows - 1
    subsets, num_links = 1 << steps.elements, link_O3.shape[0] + 1
    theta_FL, seen_FL = np.zeros((num_features, LANES), Single), np.zeros((num_features, LANES), Single)
    link_KL, seen_KL = np.zeros((num_links, LANES), Single), np.zeros((num_links, LANES), Single)
    cost_SL, seen_SL = np.zeros((subsets, LANES), Single), np.zeros((subsets, LANES), Single)
    least_RL, sum_RL = np.zeros((steps.rows, LANES), Single), np.zeros((steps.rows, LANES), Single)
    seen_RL, bits_L = np.zeros((steps.rows, LANES), Single), np.zeros(LANES, np.int32)
    scale_L = bits_L.view(Single)
    bits, rounded = BITS_OF_E / Single(max(smoothing, LEAST_SMOOTHING)), ROUNDING * (num_features + steps.elements)
    lanes = theta_FL.shape[1]  # not a constant for the compiler, which would unroll the loops
    total, magnitude = 0.0, 0.0
    for start in range(0, cell_UF.shape[0], LANES):
        count = min(LANES, cell_UF.shape[0] - start)
        for lane in range(count):
            for f in range(num_features):
                theta_FL[f, lane] = theta_UF[start + lane, f]
        for o in range(num_links - 1):
            k, before, f = link_O3[o, 0], link_O3[o, 1], link_O3[o, 2]
            for lane in range(lanes):
                link_KL[k, lane] = link_KL[before, lane] + theta_FL[f, lane]
        for o in range(subsets - 1):
            s, rest, k = block_O3[o, 0], block_O3[o, 1], block_O3[o, 2]
            for lane in range(lanes):
                cost_SL[s, lane] = cost_SL[rest, lane] + link_KL[k, lane]
        for q in range(entries):
            s, copies, cost = subset_Q[q], copies_Q[q], cost_Q[q]
            for lane in range(lanes):
                least_RL[q, lane] = cost + copies * cost_SL[s, lane]
        least_RL[entries + 1 :] = np.inf
        for t in range(term_T3.shape[0]):
            r, one, other = term_T3[t, 0], term_T3[t, 1], term_T3[t, 2]
            for lane in range(lanes):
                together = least_RL[one, lane] + least_RL[other, lane]
                least_RL[r, lane] = together if together < least_RL[r, lane] else least_RL[r, lane]
        for lane in range(count):
            size = 0.0
            for f in range(num_features):
                size += abs(theta_UF[start + lane, f])
            size = weight_U[start + lane] * (steps.most_copies * size + steps.elements)
            magnitude += size
            total += weight_U[start + lane] * np.float64(least_RL[whole, lane]) - rounded * size
        if stride == 0.0:
            continue
        for q in range(entries):
            for lane in range(lanes):
                power = (least_RL[whole, lane] * share_Q[q] - least_RL[q, lane]) * bits
                power = power if power < MOST_EXPONENT else MOST_EXPONENT
                power = power if power > LEAST_EXPONENT else NO_EXPONENT
                below = np.floor(power)
                z = power - below
                bits_L[lane] = np.int32(below)
                high = POWERS[2] + z * (POWERS[3] + z * POWERS[4])
                sum_RL[q, lane] = Single(1.0) + z * (POWERS[0] + z * (POWERS[1] + z * high))
            for lane in range(lanes):
                bits_L[lane] = (bits_L[lane] + np.int32(127)) << np.int32(23)
            for lane in range(lanes):
                sum_RL[q, lane] *= scale_L[lane]
        sum_RL[entries:] = Single(0.0)
        sum_RL[entries] = Single(1.0)
        for t in range(term_T3.shape[0]):
            r, one, other = term_T3[t, 0], term_T3[t, 1], term_T3[t, 2]
            for lane in range(lanes):
                together = sum_RL[r, lane] + sum_RL[one, lane] * sum_RL[other, lane]
                sum_RL[r, lane] = together if together < MOST_WEIGHT else MOST_WEIGHT
        seen_RL[:] = Single(0.0)
        for lane in range(lanes):
            seen_RL[whole, lane] = Single(1.0) / max(sum_RL[whole, lane], Single(1e-30))
        for t in range(term_T3.shape[0] - 1, -1, -1):
            r, one, other = term_T3[t, 0], term_T3[t, 1], term_T3[t, 2]
            for lane in range(lanes):
                seen_RL[one, lane] += seen_RL[r, lane] * sum_RL[other, lane]
            for lane in range(lanes):
                together = seen_RL[other, lane] + seen_RL[r, lane] * sum_RL[one, lane]
                seen_RL[other, lane] = together if together < MOST_WEIGHT else MOST_WEIGHT
        seen_SL[:] = Single(0.0)
        for q in range(entries):
            s, copies = subset_Q[q], copies_Q[q]
            for lane in range(lanes):
                seen_SL[s, lane] += copies * seen_RL[q, lane] * sum_RL[q, lane]
        seen_KL[:] = Single(0.0)
        for o in range(subsets - 2, -1, -1):
            s, rest, k = block_O3[o, 0], block_O3[o, 1], block_O3[o, 2]
            for lane in range(lanes):
                seen_SL[rest, lane] += seen_SL[s, lane]
            for lane in range(lanes):
                seen_KL[k, lane] += seen_SL[s, lane]
        seen_FL[:] = Single(0.0)
        for o in range(num_links - 2, -1, -1):
            k, before, f = link_O3[o, 0], link_O3[o, 1], link_O3[o, 2]
            for lane in range(lanes):
                seen_KL[before, lane] += seen_KL[k, lane]
            for lane in range(lanes):
                seen_FL[f, lane] += seen_KL[k, lane]
        for lane in range(count):
            u = start + lane
            for f in range(num_features):
                seen = np.float64(seen_FL[f, lane])
                slope = seen - shared_V[cell_UF[u, f]] if seen < MOST_SEEN else 0.0
                moved = ascended(first_UF, second_UF, memory, u, f, theta_UF[u, f], slope, stride)
                theta_UF[u, f] = max(moved, least_F[f])
    return total, magnitude
