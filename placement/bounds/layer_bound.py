"""Lower bounds that hold for every placement."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.bounds.convex_envelope import least_of_all
from placement.bounds.lagrangian_bound import lagrangian_bound
from placement.bounds.set_sizes import by_size
from placement.bounds.spectral_bound import MARGIN, QUICK_EXPERTS, Pieces, bound_steps, spectral_bound
from placement.core.cluster import Cluster

QUICK_ITERATIONS, QUICK_WITH_COPIES = 10, 8  # of a Lagrangian bound, with more than QUICK_EXPERTS


def smallest_imbalance(load_E: npt.NDArray[np.floating], cluster: Cluster, margin: float = MARGIN) -> float:
    """No map has a lower rank imbalance: a rank serves at least one copy, and the hottest copy is at least this hot.

    Copies are added greedily to the expert with the highest load per copy, which is optimal for the min-max. Without
    redundant experts the rest of the rank counts too: of the G*j + 1 heaviest experts some rank holds j + 1.

    Args:
        load_E: load of every expert, [E], in any unit.
        cluster: where the slots are.
        margin: relative, what is subtracted for rounding.
    """
    cluster = cluster.balanced()
    load = np.asarray(load_E, dtype=np.float64)
    mean = load.sum() / cluster.num_ranks
    if not mean > 0:
        return 1.0
    copies = np.ones(len(load))
    for _ in range(cluster.num_slots - len(load)):
        hottest = int(np.argmax(load / copies))
        if copies[hottest] >= cluster.num_ranks:
            break
        copies[hottest] += 1
    most = float((load / copies).max())
    if cluster.num_slots == len(load):
        most = max(most, _crowded_rank(load, cluster))
    return max(1.0, float(most * (1 - margin) / cluster.speed_G().max() / mean))


def _crowded_rank(load_E: npt.NDArray[np.float64], cluster: Cluster) -> float:
    """The least load of the rank that holds j + 1 of the G*j + 1 heaviest experts, at the best j."""
    ranks, slots = cluster.num_ranks, cluster.slots_per_gpu
    falling = -np.sort(-load_E)
    return max(
        float(falling[ranks * j - j : ranks * j + 1].sum() + falling[len(falling) - (slots - j - 1) :].sum())
        for j in range(slots)
    )


def sends_bound(
    sets_UK: npt.NDArray[np.integer],
    count_U: npt.NDArray[np.integer],
    num_experts: int,
    num_nodes: int,
    slots_per_node: int,
    *,
    home_U: npt.NDArray[np.integer] | None = None,
    tight: bool = False,
    deadline: float | None = None,
) -> float:
    """No map sends fewer copies of a token to remote nodes, in the mean over these tokens and homes.

    The higher of two: that of `_served_at_home`, and with one copy per expert `spectral_bound`, with more
    `lagrangian_bound`. Both of the latter hold for every replica choice.

    Args:
        sets_UK: top-k sets, [U, K], distinct ids in a row; short ones have -1 in their last places.
        count_U: tokens that have each set, [U].
        num_experts: logical experts.
        num_nodes: nodes of `slots_per_node` slots each.
        home_U: home node of each set's tokens, [U], -1: uniformly random; None: all are random.
        tight: gives `lagrangian_bound` more time.
        deadline: `time.monotonic()` at which to stop.
    """
    weight_U = np.asarray(count_U, dtype=np.float64) / float(np.sum(count_U))
    if num_nodes == 1 or not (sets_UK >= 0).any():
        return 0.0
    redundant = num_nodes * slots_per_node > num_experts
    best = 0.0
    if redundant or home_U is not None:
        best = _served_at_home(sets_UK, weight_U, home_U, num_experts, num_nodes, slots_per_node)
    pieces = sends_pieces(sets_UK, weight_U, num_experts, num_nodes, slots_per_node, home_U=home_U)
    if redundant:
        quick = bound_steps(num_experts) if num_experts <= QUICK_EXPERTS else QUICK_WITH_COPIES
        return max(lagrangian_bound(pieces, iterations=None if tight else quick, deadline=deadline)[0], best)
    return max(spectral_bound(pieces, bound_steps(num_experts)), best)


def sends_pieces(
    sets_UK: npt.NDArray[np.integer],
    weight_U: npt.NDArray[np.float64],
    num_experts: int,
    num_nodes: int,
    slots_per_node: int,
    *,
    home_U: npt.NDArray[np.integer] | None = None,
) -> Pieces:
    """The pieces of sends alone: `weight_U` are shares of the tokens, the rest is as for `sends_bound`."""
    return Pieces(
        sets_UK=sets_UK,
        weight_U=weight_U,
        load_BE=np.full((1, num_experts), 1.0 / num_experts),
        price_B=np.zeros(1),
        floor_B=np.ones(1),
        num_nodes=num_nodes,
        slots_per_node=min(slots_per_node, num_experts),
        home_U=home_U,
    )


def _served_at_home(
    sets_UK: npt.NDArray[np.integer],
    weight_U: npt.NDArray[np.float64],
    home_U: npt.NDArray[np.integer] | None,
    num_experts: int,
    num_nodes: int,
    slots_per_node: int,
) -> float:
    """A home hosts at most m experts; of a token's K it serves x, so ceil((K - x) / m) other nodes or more are needed.

    The mean of x is at most what each home serves with the m experts that its tokens visit most, the mean of the pairs
    x(x-1)/2 at most that of the m experts that have the most visits together with m - 1 others each.
    """
    top_k = sets_UK.shape[1]
    held = min(slots_per_node, num_experts)
    if home_U is None:
        weight_HU = [weight_U]  # all homes are alike
    else:
        weight_HU = [np.where(home_U < 0, weight_U / num_nodes, weight_U * (home_U == n)) for n in range(num_nodes)]
    first, second = np.triu_indices(top_k, 1)
    # row and column 0 are of the places that short sets lack
    places_UK, size = sets_UK.astype(np.int64) + 1, num_experts + 1
    key = (places_UK[:, first] * size + places_UK[:, second]).ravel()
    served, together = 0.0, 0.0
    for home_weight_U in weight_HU:
        visits_E = np.bincount(places_UK.ravel(), weights=np.repeat(home_weight_U, top_k), minlength=size)[1:]
        served += float(np.sort(visits_E)[num_experts - held :].sum())
        half = np.bincount(key, weights=np.repeat(home_weight_U, len(first)), minlength=size**2)
        pairs_EE = half.reshape(size, size)[1:, 1:]
        pairs_EE = pairs_EE + pairs_EE.T
        with_others = np.sort(pairs_EE, axis=1)[:, num_experts - held + 1 :].sum(axis=1)
        together += 0.5 * float(np.sort(with_others)[num_experts - held :].sum())
    remote, fewest = [], []
    for rows, sets_RK in by_size(sets_UK):
        share, points = float(weight_U[rows].sum()), _remote_nodes(sets_RK.shape[1], held)
        remote.append((share, points))
        by_pairs: dict[int, int] = {}
        for x, nodes in points.items():
            pairs = x * (x - 1) // 2
            by_pairs[pairs] = min(by_pairs.get(pairs, nodes), nodes)
        fewest.append((share, by_pairs))
    best = max(least_of_all(remote, served), least_of_all(fewest, together))
    return float(max(best - MARGIN * top_k * top_k, 0.0))


def _remote_nodes(top_k: int, held: int) -> dict[int, int]:
    """The fewest other nodes that a token needs, by how many of its experts its home serves."""
    return {x: -(-(top_k - x) // held) for x in range(min(top_k, held) + 1)}
