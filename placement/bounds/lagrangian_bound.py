"""A tight lower bound on what any placement with one copy per expert costs, by Lagrangian decomposition.

Every top-k set gets pairs of its own, which say which of its experts share a node, and the map has its same-node matrix
X. Both have to agree: a multiplier prices each pair of each set. Apart, both sides are solved: a set takes the best of
its partitions over nodes (`set_partitions`), X is bounded by eigenvalues (`same_node_relaxation`), and

    cost >= sum over sets of the least (blocks + theta . pairs) + the least (balance - <theta, X>)

for any multipliers. The imbalance is that of the most loaded node, which is at least any weighted mean of the loads of
the experts' nodes, which is linear in X: a row of weights per row of loads is one more set of multipliers. A cap on the
load of a node is linear in X too: for every expert the load of its node is in a range, and multipliers price both ends.

Adam climbs a smoothed version (softmax over partitions, eigenvectors chosen softly) whose smoothing and steps shrink;
every iterate is judged unsmoothed, the best is kept, and a bound of the rounding errors is subtracted.
"""

from __future__ import annotations

from itertools import zip_longest
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from placement.bounds.dual_ascent import LONG, SHORT, SHORT_CLIMB, Adam, AscentStep, ClimbPlan, climb
from placement.bounds.node_range import node_range
from placement.bounds.same_node_relaxation import MOST_EXACT, Earned, SharedMatrix
from placement.bounds.spectral_bound import (
    ERROR_FACTOR,
    MARGIN,
    QUICK_EXPERTS,
    Pieces,
    bound_steps,
    spectral_bound,
)
from placement.bounds.token_sets import TokenSets

Floats = npt.NDArray[np.float64]

ITERATIONS, FEW_ITERATIONS = 800, 100  # few where one is dear: 30 ms for 16,000 sets of 8 of 256 experts
FIRST_THETA = 1.8  # the first theta of a pair is this divided by K
FIRST_HOST = 0.1  # of a host, with several copies
SOFT_MAP = 0.05  # the same for a map: many other X are as good as the last one of a climb
PRICE_STRIDE, FLOOR_STRIDE, NODE_STRIDE = 2.0, 0.5, 0.03  # of STRIDE; the first times X's mean pair reward
RANGE_STRIDE = 0.3  # in that unit times the number of experts
WARM_PROGRESS = 0.3  # a start from known multipliers begins at this share of the schedule


class Multipliers(NamedTuple):
    """Any values give a valid bound (prices of inequalities have to be >= 0, and are made so).

    thetas      of each kind of `TokenSets`, its sets by falling weight; 1 is the price of a node. float64
                [U, K(K-1)/2], of the pairs of each set with a random home; [U, K(K+1)/2] of those with a given home:
                pairs, then pairs of expert and home
    floor_B     float64 [B], weight of the floor in an imbalance, in 0..1; the rest is that of the nodes
    node_BE     float64 [B, E], weight of each expert's node there; rows sum to 1
    price_EE    float64 [E, E] (E + N where homes are given), of the diagonal and the range of X
    triangle_T  float64 [T], of the triangle inequalities of X
    range_E     float64 [E], of the range of the load of each expert's node: > 0 of its upper end, < 0 of its lower
    square_1    float64 [1], of the sum of the squares of the nodes' loads
    """

    thetas: tuple[Floats, ...]
    floor_B: Floats
    node_BE: Floats
    price_EE: Floats
    triangle_T: Floats
    range_E: Floats
    square_1: Floats


class _Adams(NamedTuple):
    """One for each of `Multipliers` but the first, which are those of the sets."""

    floor_B: Adam
    node_BE: Adam
    price_EE: Adam
    triangle_T: Adam
    range_E: Adam
    square_1: Adam


def lagrangian_bound(
    pieces: Pieces, *, iterations: int | None = None, deadline: float | None = None, start: Multipliers | None = None
) -> tuple[float, Multipliers]:
    """Lower bound on sends + sum_B price * imbalance over all maps, and its multipliers; with copies on sends alone.

    Never below `spectral_bound`, but for a short climb with many experts. Deterministic without a deadline.

    Args:
        pieces: what the cost of a map consists of.
        iterations: steps, of some 2 ms for 3000 sets of 4 of 32 experts; None: ITERATIONS, fewer where they are dear.
        deadline: `time.monotonic()` at which to stop; the schedule is hurried to end there.
        start: multipliers of a similar layer. Arrays of another shape than here are not used; if all are used, the
            bound is never below what they give here.

    Raises:
        ValueError: a node has more slots than there are experts, all have fewer, or imbalance is priced with copies.
    """
    num_nodes = pieces.num_nodes
    num_experts = pieces.load_BE.shape[1]
    further = num_nodes * pieces.slots_per_node - num_experts
    if further < 0 or pieces.slots_per_node > num_experts:
        raise ValueError(f"{num_nodes} nodes of {pieces.slots_per_node} slots cannot hold {num_experts} experts")
    if further and pieces.price_B.any():
        raise ValueError("where experts have several copies, sends are bounded alone: price_B must be 0")
    quick = iterations is not None and iterations <= SHORT_CLIMB
    alone = further > 0 or (quick and num_experts > QUICK_EXPERTS and num_nodes > 1)
    best = float(pieces.price_B @ pieces.floor_B) * (1 - MARGIN)
    if not alone:
        best = max(spectral_bound(pieces, bound_steps(num_experts)), best)
    dual = _Dual(pieces, start, SHORT if quick else LONG)
    kept = dual.multipliers
    if num_nodes == 1:
        return best, kept
    if iterations is None:
        iterations = FEW_ITERATIONS if dual.sets.dear else ITERATIONS
    most = -np.inf
    for step in climb(iterations, deadline, 0.0 if start is None else WARM_PROGRESS):
        at = dual.multipliers
        value = dual.judge_and_ascend(step)
        if value > most:
            most, kept = value, at
    if not dual.exact:
        last, value = dual.multipliers, dual.judge(dual.multipliers)
        most, kept = (value, last) if most <= value else max((dual.judge(kept), kept), (value, last), key=itemgetter(0))
    return max(best, most), kept


def relaxed_map(pieces: Pieces, at: Multipliers) -> Floats:
    """The relaxed same-node matrix that multipliers of a bound of these pieces lead to, float64 [E, E]."""
    num_experts = pieces.load_BE.shape[1]
    return _Dual(pieces, at).earn(at, SOFT_MAP).same_EE[:num_experts, :num_experts]


class _Dual:
    """Where the climb is, and its steps."""

    def __init__(self, pieces: Pieces, start: Multipliers | None, plan: ClimbPlan = LONG) -> None:
        self.pieces, self.plan = pieces, plan
        self.num_experts = pieces.load_BE.shape[1]
        shape = (pieces.num_nodes, pieces.slots_per_node)
        self.shared = SharedMatrix(self.num_experts, *shape, homes=pieces.home_U is not None)
        hosts = self.shared.further > 0
        given = (pieces.sets_UK, pieces.weight_U, pieces.home_U, self.num_experts)
        self.sets = TokenSets(*given, *shape, hosts=hosts, memory=plan.memory)
        own = Multipliers(
            thetas=self.sets.first(lambda size: [FIRST_THETA / size, *([FIRST_HOST] if hosts else [])]),
            floor_B=np.full(len(pieces.load_BE), 0.5),
            node_BE=_first_nodes(pieces),
            price_EE=np.zeros((self.shared.size, self.shared.size)),
            triangle_T=np.zeros(self.shared.near_DT.shape[1]),
            range_E=np.zeros(self.num_experts),
            square_1=np.zeros(1),
        )
        self.range = node_range(pieces)
        if start is not None:
            own = Multipliers(
                tuple(_warm(old, new) for old, new in zip_longest(own.thetas, start.thetas) if old is not None),
                *(_warm(old, new) for old, new in zip(own[1:], start[1:], strict=True)),
            )
        self.multipliers = _valid(own, pieces.slots_per_node)
        self.exact = self.shared.size <= MOST_EXACT  # what is judged on the way is certain
        self.adam = _Adams(*(Adam.like(variable, plan.memory) for variable in own[1:]))
        top_k = self.sets.top_k
        pairs = float(pieces.weight_U.sum()) * (1 - 1 / pieces.num_nodes) * top_k * (top_k - 1) / 2
        self.unit = FIRST_THETA / top_k * pairs / max(self.num_experts * (self.num_experts - 1), 1)  # mean reward in X

    def judge(self, at: Multipliers) -> float:
        """The certified bound at multipliers."""
        earned = self.earn(at, SOFT_MAP)
        return self._value(at, earned, *self.sets.judge(at.thetas))

    def _value(self, at: Multipliers, earned: Earned, sets: float, sets_size: float) -> float:
        """The bound, less its rounding errors, from both sides' answers."""
        pieces, capped = self.pieces, self.range
        priced_B = pieces.price_B * pieces.floor_B
        above_E, below_E = np.maximum(at.range_E, 0.0), np.maximum(-at.range_E, 0.0)
        kept = capped.least * float(below_E.sum()) - capped.most * float(above_E.sum()) - capped.square * at.square_1[0]
        value = sets + float(priced_B @ at.floor_B) + float(kept) - earned.most
        size = sets_size + self.num_experts * float(priced_B @ (1 + np.abs(at.node_BE).sum(axis=1)))
        size += float(np.abs(at.range_E).sum() + at.square_1[0])
        terms = self.sets.terms + pieces.load_BE.size
        error = ERROR_FACTOR * np.finfo(np.float64).eps * (terms * size + self.shared.size**2 * earned.norm)
        return value - float(error)

    def judge_and_ascend(self, step: AscentStep) -> float:
        """The bound at the multipliers, certified where `exact`; then they move on, in new arrays."""
        pieces, at, shared, plan = self.pieces, self.multipliers, self.shared, self.plan
        stride = step.falling(plan.stride)
        load_E, capped, experts = pieces.load_BE[0], self.range, self.num_experts
        earned = self.earn(at, step.falling(plan.soft_eigenvalues), exact=self.exact)
        same_EE = earned.same_EE[:experts, :experts]
        sets, sets_size, thetas = self.sets.judge_and_ascend(
            step, at.thetas, self._shared_V(earned), step.falling(plan.soft_splits), stride
        )
        stride *= plan.memory.bias(step.number)
        value = self._value(at, earned, sets, sets_size)

        floor_B, node_BE = at.floor_B, at.node_BE
        if pieces.price_B.any():
            load_BE = pieces.load_BE @ same_EE * (pieces.num_nodes / pieces.fastest_node)  # load of each expert's node
            gain_B = pieces.floor_B - (load_BE * node_BE).sum(axis=1)
            load_BE -= load_BE.mean(axis=1, keepdims=True)
            floor_B = self.adam.floor_B.ascend(floor_B, gain_B, stride * FLOOR_STRIDE)
            node_BE = self.adam.node_BE.ascend(node_BE, load_BE, stride * NODE_STRIDE)
        price_stride = stride * self.unit * PRICE_STRIDE
        slope_EE = _price_gradient(at.price_EE, earned, shared.most_EE(earned.hosts_E))
        price_EE = self.adam.price_EE.ascend(at.price_EE, slope_EE, price_stride)
        crossed = price_EE * at.price_EE < 0
        np.fill_diagonal(crossed, False)
        price_EE[crossed] = 0.0
        range_E, square_1 = at.range_E, at.square_1
        if capped.most < 1:
            node_E = same_EE @ load_E
            slope_E = np.where(range_E > 0, node_E - capped.most, np.where(range_E < 0, node_E - capped.least, 0.0))
            slope_E += (range_E == 0) * (np.maximum(node_E - capped.most, 0) - np.maximum(capped.least - node_E, 0))
            range_stride = price_stride * self.num_experts * RANGE_STRIDE
            range_E = self.adam.range_E.ascend(range_E, slope_E, range_stride)
            range_E[range_E * at.range_E < 0] = 0.0
            over_1 = np.array([float(load_E @ node_E) - capped.square])
            square_1 = self.adam.square_1.ascend(square_1, over_1, range_stride * self.num_experts)
        moved = Multipliers(
            thetas=thetas,
            floor_B=floor_B,
            node_BE=node_BE,
            price_EE=price_EE,
            triangle_T=self.adam.triangle_T.ascend(at.triangle_T, shared.transitive(earned.same_EE), price_stride),
            range_E=range_E,
            square_1=square_1,
        )
        self.multipliers = _valid(moved, pieces.slots_per_node)
        return value

    def earn(self, at: Multipliers, smoothing: float, *, exact: bool = True) -> Earned:
        """What the best X earns."""
        experts, load_E = self.num_experts, self.pieces.load_BE[0]
        reward_V, size = self.sets.rewards(at.thetas), self.shared.size
        upper_EE, host_E = reward_V[: size**2].reshape(size, size), reward_V[size**2 :]
        upper_EE[:experts, :experts] -= self._imbalance_EE(at) + np.outer(at.range_E + at.square_1 * load_E, load_E)
        prices = (at.price_EE, at.triangle_T)
        reward_EE, host_E = 0.5 * (upper_EE + upper_EE.T), host_E if self.shared.further else np.zeros(size)
        return self.shared.earn(reward_EE, host_E, *prices, smoothing, exact=exact, leading=self.plan is SHORT)

    def _shared_V(self, earned: Earned) -> Floats:
        """What the shared side has of each feature."""
        pairs_V = earned.same_EE.ravel()
        return np.concatenate([pairs_V, earned.hosts_E]) if self.shared.further else pairs_V

    def _imbalance_EE(self, at: Multipliers) -> Floats:
        """What X pays for imbalance: <this, X> is the weighted mean of the loads of the experts' nodes, priced."""
        pieces = self.pieces
        price_B = pieces.price_B * (1 - at.floor_B) * (pieces.num_nodes / pieces.fastest_node)
        return np.asarray((at.node_BE * price_B[:, None]).T @ pieces.load_BE)


def _warm(own: Floats, start: Floats | None) -> Floats:
    return start.copy() if start is not None and start.shape == own.shape else own


def _first_nodes(pieces: Pieces) -> Floats:
    """Weights that grow with an expert's load, as steeply as is allowed: the tangent of `spectral_bound`."""
    lightest_B = np.sort(pieces.load_BE, axis=1)[:, : pieces.slots_per_node].sum(axis=1)
    growth_B1 = 1.0 / np.maximum(1.0 - pieces.num_nodes * lightest_B, 1e-3)[:, None]
    return np.asarray(growth_B1 * pieces.load_BE + (1 - growth_B1) / pieces.load_BE.shape[1])


def _price_gradient(price_EE: Floats, earned: Earned, most_EE: Floats) -> Floats:
    """Uphill: what X breaks gets dearer, what it keeps strictly gets cheaper."""
    same_EE = earned.same_EE
    gradient_EE = np.where(price_EE > 0, -same_EE, np.where(price_EE < 0, most_EE - same_EE, 0.0))
    free = price_EE == 0
    gradient_EE += free * (np.maximum(-same_EE, 0.0) - np.maximum(same_EE - most_EE, 0.0))
    np.fill_diagonal(gradient_EE, earned.hosts_E - np.diag(same_EE))
    return np.asarray(gradient_EE)


def _valid(at: Multipliers, slots: int) -> Multipliers:
    """The multipliers with prices symmetric and >= 0, and weights of nodes >= 0 whatever the map.

    An expert's weight may be negative: a node's is the sum of its experts', so the least `slots` of them count.
    """
    even = 1.0 / at.node_BE.shape[1]
    node_BE = at.node_BE + (even - at.node_BE.mean(axis=1, keepdims=True))
    short_B1 = np.maximum(-np.partition(node_BE, slots - 1, axis=1)[:, :slots].sum(axis=1, keepdims=True), 0.0)
    node_BE += short_B1 / (short_B1 + slots * even) * (even - node_BE)
    return at._replace(
        floor_B=np.clip(at.floor_B, 0.0, 1.0),
        node_BE=node_BE,
        price_EE=0.5 * (at.price_EE + at.price_EE.T),
        triangle_T=np.maximum(at.triangle_T, 0.0),
        square_1=np.maximum(at.square_1, 0.0),
    )
