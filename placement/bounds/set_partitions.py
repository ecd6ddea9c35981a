"""All ways to split a top-k set over nodes, as tables, and kernels that go over them one by one.

A map splits a set into blocks, each served by a node. What a split has (pairs of experts on one node, hosts of an
expert) are its features; like the features, what it costs is known from its blocks, which are subsets: bit masks of
elements. Where the home of the tokens is given it is one more element, the last: its block is what the home hosts and
sends nothing.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from placement.bounds.dual_ascent import Adam, ascended
from placement.support.kernel import inlined_kernel, kernel

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Masks = npt.NDArray[np.uint16]  # unsigned indices need no check for being negative

MOST_EXPONENT = 11.5  # splits with a chance below 1e-5 of the best one's are left out of the gradient


class Splits(NamedTuple):
    """The splits of sets of K elements. Entry r * 2^K + s of `parts_PJ` stands for r + 1 nodes with subset s.

    parts_PJ   uint16 [P, J], the blocks of every split, 0 where there are fewer than J
    cost_P     float64 [P], what a split costs, in nodes
    ptr_S      int64 [S + 1] into feature_D int64, the features of each of the 2^K subsets
    least_F    float64 [F], the least that a feature's multiplier may be: -inf, or 0 where it prices an inequality
    most_copies  one more than the largest r
    """

    parts_PJ: Masks
    cost_P: Floats
    ptr_S: Ints
    feature_D: Ints
    least_F: Floats
    most_copies: int


class SetSide(NamedTuple):
    """Sets of one size, by falling weight.

    cell_UF   int64 [U, F], where the shared side has each feature of each set
    weight_U  float64 [U], what a node costs
    """

    cell_UF: Ints
    weight_U: Floats
    splits: Splits


def set_partitions(top_k: int, most_blocks: int, largest: int) -> Masks:
    """All partitions of K elements into at most `most_blocks` blocks of at most `largest`, uint16 [P, J] bit masks."""
    found: list[list[int]] = [[]]
    for element in range(top_k):
        bit = 1 << element
        longer = []
        for blocks in found:
            for j, block in enumerate(blocks):
                if block.bit_count() < largest:
                    longer.append([*blocks[:j], block | bit, *blocks[j + 1 :]])
            if len(blocks) < most_blocks:
                longer.append([*blocks, bit])
        found = longer
    parts_PJ = np.zeros((len(found), min(top_k, most_blocks)), dtype=np.uint16)
    for row, blocks in zip(parts_PJ, found, strict=True):
        row[: len(blocks)] = blocks
    return parts_PJ


@lru_cache(maxsize=8)
def node_splits(top_k: int, num_nodes: int, slots_per_node: int) -> Splits:
    """One copy of each expert: partitions. They cost their blocks; features are pairs, as in `numpy.triu_indices`."""
    parts_PJ = set_partitions(top_k, num_nodes, slots_per_node)
    cost_P = (parts_PJ > 0).sum(axis=1).astype(np.float64)
    return _splits(parts_PJ, cost_P, features(top_k), top_k, -np.inf, 1)


@lru_cache(maxsize=4)
def home_splits(top_k: int, num_nodes: int, slots_per_node: int, *, hosts: bool) -> Splits:
    """A set whose tokens have a given home: partitions of its experts and the home, which costs nothing.

    Features are pairs of experts, hosts of an expert (where `hosts`: several copies of experts), then the experts that
    the home hosts. Partitions are enough there too: what the home hosts is not needed elsewhere, each other expert is
    needed on one node of the cover, and hosting less is never dearer.
    """
    home = 1 << top_k
    parts_PJ = set_partitions(top_k + 1, num_nodes, slots_per_node + 1)
    experts_PJ = np.bitwise_count(parts_PJ & np.uint16(home - 1))
    parts_PJ = parts_PJ[(experts_PJ <= slots_per_node).all(axis=1)]
    cost_P = (parts_PJ > 0).sum(axis=1).astype(np.float64) - 1.0
    masks = features(top_k, hosts=hosts, home=True)
    return _splits(parts_PJ, cost_P, masks, top_k + 1, 0.0 if hosts else -np.inf, 1)


@lru_cache(maxsize=8)
def host_splits(top_k: int, num_nodes: int, slots_per_node: int) -> Splits:
    """Several copies of experts: what nodes host of a set, where a further pair or host is never an advantage.

    With random homes a set costs L - H / N: L is the fewest nodes that cover it, and H counts the nodes that are in
    such a cover; a home among them saves a node. Features are pairs of experts on one node, then hosts of an expert;
    their multipliers are >= 0, so a subset of what a node hosts never costs more. Hence few splits have to be looked
    at: let f be the price of a node's features less 1 / N, and A the cheapest of the H nodes. A is in a cover of L
    nodes. Cut that to a partition, and let the other H - L nodes host what is left of A: nothing gets dearer. Then
    either none of them or all N - L is best. So these are all: every partition, alone or with N - L more copies of one
    of its blocks.
    """
    subsets = 1 << top_k
    rows, cost = [], []
    for blocks in set_partitions(top_k, num_nodes, slots_per_node).tolist():
        count = sum(block > 0 for block in blocks)
        rows.append(blocks)
        cost.append(count * (1 - 1 / num_nodes))
        for j in range(count if count < num_nodes else 0):
            rows.append([*blocks[:j], (num_nodes - count) * subsets + blocks[j], *blocks[j + 1 :]])
            cost.append(count - 1.0)
    masks = features(top_k, hosts=True)
    return _splits(np.array(rows, dtype=np.uint16), np.array(cost), masks, top_k, 0.0, num_nodes)


def even_splits(
    top_k: int, num_nodes: int, slots_per_node: int, *, hosts: bool, home: bool = False
) -> tuple[Floats, Floats]:
    """What is left of `node_splits`, `host_splits` or `home_splits` where features of a kind are only counted.

    Cost, float64 [C], and features of each kind (pairs; hosts; at home), float64 [C, 1 to 3], of all that differ.
    """
    found: set[tuple[float, ...]] = set()
    largest = min(top_k, slots_per_node)
    if home:
        for at_home in range(largest + 1):
            for sizes in _sizes(top_k - at_home, num_nodes - 1, largest):
                pairs = sum(size * (size - 1) // 2 for size in [at_home, *sizes])
                found.add((len(sizes), pairs, *([top_k] if hosts else []), at_home))
    for sizes in [] if home else _sizes(top_k, num_nodes, largest):
        count, pairs = len(sizes), sum(size * (size - 1) // 2 for size in sizes)
        if not hosts:
            found.add((count, pairs))
            continue
        found.add((count * (1 - 1 / num_nodes), pairs, top_k))
        more = num_nodes - count
        for size in set(sizes if more else ()):
            found.add((count - 1.0, pairs + more * (size * (size - 1) // 2), top_k + more * size))
    rows = np.array(sorted(found), dtype=np.float64)
    return rows[:, 0], rows[:, 1:]


def _sizes(left: int, most_blocks: int, largest: int) -> list[list[int]]:
    """The sizes of blocks, falling, that are possible."""
    if left == 0:
        return [[]]
    if most_blocks == 0:
        return []
    return [
        [size, *rest]
        for size in range(min(left, largest), 0, -1)
        for rest in _sizes(left - size, most_blocks - 1, size)
    ]


def features(top_k: int, *, hosts: bool = False, home: bool = False) -> list[int]:
    """What a block needs to have for each feature of a set, as bit masks: pairs, then hosts, then experts at home."""
    singles = [1 << i for i in range(top_k)]
    pairs = [1 << i | 1 << j for i, j in zip(*(axis.tolist() for axis in np.triu_indices(top_k, 1)), strict=True)]
    return pairs + (singles if hosts else []) + ([1 << top_k | single for single in singles] if home else [])


def _splits(parts_PJ: Masks, cost_P: Floats, masks: list[int], elements: int, least: float, copies: int) -> Splits:
    held = [[f for f, needed in enumerate(masks) if s & needed == needed] for s in range(1 << elements)]
    ptr_S = np.cumsum([0] + [len(row) for row in held]).astype(np.int64)
    feature_D = np.array([f for row in held for f in row], dtype=np.int64)
    return Splits(parts_PJ, cost_P, ptr_S, feature_D, np.full(len(masks), least), copies)


@kernel
def add_rewards(side: SetSide, theta_UF: Floats, reward_V: Floats) -> None:
    """Add weight * theta at the cell of every feature: what the shared side earns for it."""
    cell_UF, weight_U = side.cell_UF, side.weight_U  # numba counts references to what a loop takes from a tuple
    for u in range(cell_UF.shape[0]):
        for f in range(cell_UF.shape[1]):
            reward_V[cell_UF[u, f]] += weight_U[u] * theta_UF[u, f]


@inlined_kernel
def _price_splits(splits: Splits, theta_F: Floats, cost_S: Floats, cost_P: Floats) -> float:
    """Write what the subsets and the splits of a set cost; returns the least."""
    parts_PJ, split_P, ptr_S, feature_D = splits.parts_PJ, splits.cost_P, splits.ptr_S, splits.feature_D
    num_parts, most_blocks = parts_PJ.shape
    subsets = ptr_S.shape[0] - 1
    for s in range(1, subsets):
        cost = 0.0
        for d in range(ptr_S[s], ptr_S[s + 1]):
            cost += theta_F[feature_D[d]]
        for copies in range(splits.most_copies):
            cost_S[copies * subsets + s] = (copies + 1) * cost
    least = np.inf
    for p in range(num_parts):
        cost = split_P[p]
        for j in range(most_blocks):
            cost += cost_S[parts_PJ[p, j]]
        cost_P[p] = cost
        least = min(least, cost)
    return float(least)


@kernel
def judge_sets(side: SetSide, theta_UF: Floats) -> tuple[float, float]:
    """The sum of weight * least cost, and the sum of the magnitudes that were added up, for the rounding error."""
    splits = side.splits
    cost_S = np.zeros((splits.ptr_S.shape[0] - 1) * splits.most_copies)
    cost_P = np.empty(splits.parts_PJ.shape[0])
    total, magnitude = 0.0, 0.0
    for u in range(side.cell_UF.shape[0]):
        total += side.weight_U[u] * _price_splits(splits, theta_UF[u], cost_S, cost_P)
        magnitude += side.weight_U[u] * (splits.most_copies * np.abs(theta_UF[u]).sum() + splits.parts_PJ.shape[1])
    return total, magnitude


@kernel
def ascend_sets(
    side: SetSide, theta_UF: Floats, adam: Adam, shared_V: Floats, smoothing: float, stride: float
) -> tuple[float, float]:
    """A step uphill of all multipliers, in place; returns what `judge_sets` does, of those before.

    shared_V   float64 [V], what the shared side has of each feature, with which the sets should agree
    smoothing  temperature of the softmax over splits, in nodes
    """
    splits, cell_UF, weight_U = side.splits, side.cell_UF, side.weight_U
    parts_PJ, ptr_S, feature_D, least_F = splits.parts_PJ, splits.ptr_S, splits.feature_D, splits.least_F
    first_UF, second_UF, memory = adam
    num_parts, most_blocks = parts_PJ.shape
    num_features = cell_UF.shape[1]
    subsets = ptr_S.shape[0] - 1
    entries = subsets * splits.most_copies
    cost_S, seen_S, cost_P = np.zeros(entries), np.zeros(entries), np.empty(num_parts)
    seen_F = np.empty(num_features)
    total, magnitude = 0.0, 0.0
    for u in range(cell_UF.shape[0]):
        least = _price_splits(splits, theta_UF[u], cost_S, cost_P)
        total += weight_U[u] * least
        magnitude += weight_U[u] * (splits.most_copies * np.abs(theta_UF[u]).sum() + most_blocks)
        seen_S[:] = 0.0
        norm = 0.0
        for p in range(num_parts):
            if cost_P[p] - least < MOST_EXPONENT * smoothing:
                chance = np.exp((least - cost_P[p]) / smoothing)
                norm += chance
                for j in range(most_blocks):
                    seen_S[parts_PJ[p, j]] += chance
        seen_F[:] = 0.0
        for s in range(1, subsets):
            seen = 0.0
            for copies in range(splits.most_copies):
                seen += (copies + 1) * seen_S[copies * subsets + s]
            if seen > 0.0:
                for d in range(ptr_S[s], ptr_S[s + 1]):
                    seen_F[feature_D[d]] += seen
        for f in range(num_features):
            gradient = seen_F[f] / norm - shared_V[cell_UF[u, f]]
            theta_UF[u, f] = max(
                ascended(first_UF, second_UF, memory, u, f, theta_UF[u, f], gradient, stride), least_F[f]
            )
    return total, magnitude
