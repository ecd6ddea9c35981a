"""What the annealing kernels share: which sets hold which experts, what a map costs, cooling, random numbers, books."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from placement.bounds.set_sizes import set_sizes
from placement.cost.covers import popcount
from placement.cost.transport import fare_HX
from placement.solvers.problem import LayerProblem
from placement.support.hash64 import GOLDEN, mix_word
from placement.support.kernel import inlined_kernel, inner_search_kernel, kernel

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Ids = npt.NDArray[np.int32]
Masks = npt.NDArray[np.uint64]  # sets of nodes, a bit for each node; also the state of a random stream
Flags = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]

CAP_PRICE = 50.0  # price of one unit of imbalance beyond a cap
LEAST_GAIN = 1e-12  # a map is kept if it gains at least this; a smaller gain is rounding
ONE, ZERO = np.uint64(1), np.uint64(0)
BOOK: int = np.int64(1)  # type: ignore[assignment]
UNDO: int = np.int64(-1)  # type: ignore[assignment]
_HALF = np.uint64(32)


class Incidence(NamedTuple):
    """Which sampled top-k sets hold which experts, in compressed rows.

    The last expert is nobody: in no slot, without load, a member at every place that a short set lacks. So what a move
    changes is added up without a question at each place; `members` says how many are taken.

    sets_UK    int32 [U, K]; count_U int64 [U]
    home_U     int32 [U], home node of the tokens of a set, -1: uniformly random
    expert_ptr int64 [E+1] into expert_sets int32, the sets that hold an expert
    entry_UK   int32 [U, K], where each (set, member) stands in expert_sets
    pair_ptr   int64 [E*E+1] into pair_sets int32, the sets that hold both a and b, at row a*E+b with a < b
    """

    sets_UK: Ids
    count_U: Ints
    home_U: Ids
    expert_ptr: Ints
    expert_sets: Ids
    entry_UK: Ids
    pair_ptr: Ints
    pair_sets: Ids


class Costs(NamedTuple):
    """What a map is judged by beside its sets, and the shape of the cluster.

    load_EB     float64 [E, B], load of each expert in units of the mean rank load; column 0 exact, others bootstraps
    slowness_G  float64 [G], 1 / relative speed
    slowness_N  float64 [N], what makes column 0 of a node's load its imbalance
    price       cost of one unit of expected imbalance, in sends per token
    busy        share of the sends that is counted as if all nodes were as busy as the busiest
    cap         hard cap on the imbalance of column 0 (inf: none), at CAP_PRICE a unit beyond it
    node_cap    the same for nodes
    fare_HX     float64 [N+1, X], cost of touching a unit, a node or a rank, once in the sample: a row a home node, and
                the last, which home -1 finds, their mean
    stay_GE     float64 [G, E], what it costs if rank g does not hold expert e: the price of a move where g holds e now
    """

    load_EB: Floats
    slowness_G: Floats
    slowness_N: Floats
    price: float
    busy: float
    cap: float
    node_cap: float
    fare_HX: Floats
    stay_GE: Floats
    num_nodes: int
    gpus_per_node: int
    slots_per_gpu: int


def incidence(problem: LayerProblem, num_experts: int, *, alone: bool = False) -> Incidence:
    """The sets of a layer's sample.

    Args:
        problem: the layer.
        num_experts: experts that the map has; those beyond the problem's are in no set.
        alone: every assignment is sent on its own, as a set of one expert.
    """
    sizes, nobody = set_sizes(problem.sets_UK), num_experts
    sets, count_U, home_U = np.ascontiguousarray(problem.sets_UK), problem.count_U, problem.homes_U
    if alone:  # every assignment is sent on its own
        each_U = np.repeat(count_U, sizes)
        pair_U = np.repeat(home_U + 1, sizes) * num_experts + sets[sets >= 0]
        pairs_U, row_U = np.unique(pair_U, return_inverse=True)
        count_U = np.bincount(row_U, each_U).astype(np.int64)
        sets = (pairs_U % num_experts).astype(np.int32)[:, None]
        home_U = (pairs_U // num_experts - 1).astype(np.int32)
    elif len(sets) and sizes.min() < sets.shape[1]:
        sets = np.where(sets < 0, np.int32(nobody), sets)[:, : max(int(sizes.max()), 1)].copy()
    top_k = sets.shape[1]
    pairs = np.triu_indices(top_k, 1)
    key = sets[:, pairs[0]].astype(np.int64) * (num_experts + 1) + sets[:, pairs[1]]
    expert_ptr, order, entry = _grouped(sets.ravel().astype(np.int64), num_experts + 1)
    pair_ptr, pair_order, _ = _grouped(key.ravel(), (num_experts + 1) ** 2)
    return Incidence(
        sets_UK=sets,
        count_U=count_U,
        home_U=home_U,
        expert_ptr=expert_ptr,
        expert_sets=order // np.int32(top_k),
        entry_UK=entry.reshape(sets.shape),
        pair_ptr=pair_ptr,
        pair_sets=pair_order // np.int32(max(len(pairs[0]), 1)),
    )


def fare_per_copy_HX(problem: LayerProblem) -> Floats:
    """What one copy of one token of the sample costs if its home is h: [N, X]."""
    fares = fare_HX(problem.cluster, problem.options.transport)
    return fares * (problem.send_price / max(int(problem.count_U.sum()), 1))


def costs_of(problem: LayerProblem, num_experts: int) -> Costs:
    """What a map of the layer is judged by; of `num_experts`, those beyond the problem's and nobody have no load."""
    cluster = problem.cluster
    cap, node_cap = problem.options.max_imbalance, problem.options.max_node_imbalance
    speed_N = cluster.speed_G().reshape(cluster.num_nodes, -1).mean(axis=1)
    load_EB = np.zeros((num_experts + 1, len(problem.load_BE)))
    load_EB[: problem.num_experts] = problem.load_BE.T * cluster.num_ranks
    fares_HX = fare_per_copy_HX(problem)
    return Costs(
        load_EB=load_EB,
        slowness_G=1.0 / cluster.speed_G(),
        slowness_N=1.0 / (speed_N * cluster.gpus_per_node),
        price=problem.balance_price,
        busy=problem.busy_share,
        cap=np.inf if cap is None else float(cap),
        node_cap=np.inf if node_cap is None else float(node_cap),
        fare_HX=np.concatenate([fares_HX, fares_HX.mean(axis=0, keepdims=True)]),
        stay_GE=np.zeros((cluster.num_ranks, num_experts + 1)),
        num_nodes=cluster.num_nodes,
        gpus_per_node=cluster.gpus_per_node,
        slots_per_gpu=cluster.slots_per_gpu,
    )


@inlined_kernel
def members(t: int, inc: Incidence) -> int:
    """How many experts set t has."""
    size: int = inc.sets_UK.shape[1]
    nobody = inc.expert_ptr.shape[0] - 2
    while size > 0 and inc.sets_UK[t, size - 1] == nobody:
        size -= 1
    return size


@kernel
def _grouped(value_X: Ints, size: int) -> tuple[Ints, Ids, Ids]:
    """Counting sort: (first place of each value, positions by rising value, place of each position among them)."""
    ptr = np.zeros(size + 1, dtype=np.int64)
    for value in value_X:
        ptr[value + 1] += 1
    for value in range(size):
        ptr[value + 1] += ptr[value]
    free = ptr[:-1].copy()
    order = np.empty(value_X.shape[0], dtype=np.int32)
    place = np.empty(value_X.shape[0], dtype=np.int32)
    for x in range(value_X.shape[0]):
        y = free[value_X[x]]
        free[value_X[x]] += 1
        order[y] = x
        place[x] = y
    return ptr, order, place


@inlined_kernel
def random_word(state: Masks) -> np.uint64:
    """The next 64 random bits (splitmix64)."""
    state[0] += GOLDEN
    return mix_word(state[0])


@inlined_kernel
def random_below(state: Masks, limit: int) -> int:
    return np.int64(((random_word(state) >> _HALF) * np.uint64(limit)) >> _HALF)  # type: ignore[return-value]


@inlined_kernel
def random_unit(state: Masks) -> float:
    """Uniform in (0, 1]."""
    return (np.float64(random_word(state) >> np.uint64(11)) + 1.0) * (1.0 / 9007199254740992.0)


@inlined_kernel
def cooling_of(hot: float, cold: float, moves: int) -> float:
    """What the temperature is multiplied by after each of the moves, to fall from `hot` to `cold`."""
    return float((cold / hot) ** (1.0 / max(moves - 1, 1)))


@inlined_kernel
def allowance(temperature: float, state: Masks) -> float:
    """By how much a move may raise the cost (Metropolis): exponentially distributed, with mean `temperature`."""
    return float(-temperature * np.log(random_unit(state)))


@inlined_kernel
def lowest_node(nodes: np.uint64) -> int:
    """The first node of a mask that is not empty."""
    return popcount((nodes & (~nodes + ONE)) - ONE)


@inner_search_kernel
def book_slots(
    u: int, v: int, i: int, j: int, r: int, s: int, replace: bool, sign: int, on_EN: Ints, holds_EG: Ints
) -> None:
    """BOOK or UNDO that v takes u's slot on rank r of node i, and u takes v's on rank s of node j unless replaced.

    on_EN, holds_EG: copies of each expert on each node and rank.
    """
    on_EN[u, i] -= sign
    on_EN[v, i] += sign
    holds_EG[u, r] -= sign
    holds_EG[v, r] += sign
    if not replace:
        on_EN[u, j] += sign
        on_EN[v, j] -= sign
        holds_EG[u, s] += sign
        holds_EG[v, s] -= sign


@inner_search_kernel
def balance_cost(peak_B: Floats, price: float, cap: float) -> float:
    """Cost of the imbalance `peak_B` under each bootstrap. Four sums side by side: one would wait for each addition."""
    num_boots = peak_B.shape[0]
    whole = num_boots - num_boots % 4
    s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
    for b in range(0, whole, 4):
        s0 += peak_B[b]
        s1 += peak_B[b + 1]
        s2 += peak_B[b + 2]
        s3 += peak_B[b + 3]
    for b in range(whole, num_boots):
        s0 += peak_B[b]
    total = (s0 + s1) + (s2 + s3)
    return float(price * total / num_boots + CAP_PRICE * max(0.0, peak_B[0] - cap))


@inner_search_kernel
def copy_row(source_P: Ids, target_P: Ids) -> None:
    """`target_P[:] = source_P`, whose check of shapes takes numba a second or two to compile."""
    for p in range(source_P.shape[0]):
        target_P[p] = source_P[p]


@inner_search_kernel
def total_of(values_X: Floats) -> float:
    """`values_X.sum()` in order, without numba's checks of axes."""
    total = 0.0
    for value in values_X:
        total += value
    return total


@inner_search_kernel
def cost_of_moves(phy2log_P: Ids, costs: Costs) -> float:
    """What it costs that ranks do not hold what they hold now."""
    cost = 0.0
    for g in range(costs.stay_GE.shape[0]):
        for e in range(costs.stay_GE.shape[1]):
            cost += costs.stay_GE[g, e]
    for p in range(phy2log_P.shape[0]):
        cost -= costs.stay_GE[p // costs.slots_per_gpu, phy2log_P[p]]
    return float(cost)
