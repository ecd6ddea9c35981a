"""A proven lower bound on what any placement with one copy per expert costs, from eigenvalues.

Let X be the same-node matrix of a map: X[a, b] = 1 if experts a and b share a node. The cost needs X alone:

sends    A token with p pairs of its experts on one node touches at least g(p) nodes, g the convex lower envelope over
         all ways to split its K experts over N nodes with m slots each; p is linear in X.
balance  The most loaded rank is at least the most loaded node, which is at least sum_n w_n * load_n for any weights w_n
         >= 0 of sum 1. Weights that grow linearly with load_n make this linear in X too: sum_n load_n^2 = load' X load.

Both are convex in X, so their tangents at any point are linear functions that lie below: cost >= constant - <M, X>.
And X is m * (11'/E + Y) with Y a projection of rank N - 1 orthogonal to 1, its diagonal is 1 and its entries lie in
0..1, so

    <M, X> <= sum(M + Z)/N + m * (sum of the N-1 largest eigenvalues of M + Z orthogonal to 1) - sum diag(Z) - sum W

for any diagonal of Z; off the diagonal, positive Z prices X >= 0 and negative Z = W prices X <= 1 (Donath and Hoffman,
IBM J. Res. Dev. 17, 1973, with the entry bounds of the semidefinite relaxation added). Every Z and every tangent
gives a valid bound; subgradient steps improve both, and the best is kept. Rounding errors are subtracted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

from placement.bounds.convex_envelope import fewest_nodes, lower_lines
from placement.bounds.set_sizes import by_size
from placement.support.kernel import kernel

Floats = npt.NDArray[np.float64]

FIRST_STEP, DIAGONAL_STEP = 0.1, 0.2  # shares of the largest entry of M, off and on the diagonal
STEP_DECAY = 20.0  # the last step is the first one / (1 + STEP_DECAY)
QUICK_EXPERTS = 64  # with more, eigenvalues take long, and a few steps of a Lagrangian bound prove more
MARGIN = 1e-9  # relative; subtracted for the rounding of plain sums
ERROR_FACTOR = 64.0  # error allowed: this * size * machine epsilon * norm, far above that of eigenvalues and sums


class Pieces(NamedTuple):
    """What the cost of a map consists of; loads are shares that sum to 1.

    sets_UK    int [U, K], distinct ids in a row; a short set has -1 in its last places
    weight_U   float64 [U], share of tokens that have each set
    price_B    float64 [B], price of one unit of imbalance under each row of loads (sums to the balance weight)
    floor_B    float64 [B], an imbalance that no map is below
    fastest_node  speed of the fastest node, relative to the mean
    most_node     share of the first row of loads that no node may exceed: what caps imply (here it is not used)
    home_U        int [U], home node of each set, -1: uniformly random; None: all are
    """

    sets_UK: npt.NDArray[np.integer]
    weight_U: Floats
    load_BE: Floats
    price_B: Floats
    floor_B: Floats
    num_nodes: int
    slots_per_node: int
    fastest_node: float = 1.0
    most_node: float = 1.0
    home_U: npt.NDArray[np.integer] | None = None


def bound_steps(num_experts: int) -> int:
    """Eigenvalue problems that a spectral bound may solve: some 20 ms in all for 32 experts, 50 ms for 256."""
    return int(np.clip(3072 // num_experts, 12, 80))


def spectral_bound(pieces: Pieces, steps: int) -> float:
    """Lower bound on sends + sum_B price * imbalance over all maps with one copy per expert.

    A random home saves one in N of the nodes that a set touches; of a given home no more is used than that it saves one
    at most.
    """
    if pieces.home_U is not None and pieces.num_nodes > 1:
        known_U = (pieces.home_U >= 0) & (pieces.sets_UK[:, 0] >= 0)
        whole_U = np.where(known_U, pieces.num_nodes / (pieces.num_nodes - 1), 1.0)
        saved = float(pieces.weight_U[known_U].sum()) * (1 + ERROR_FACTOR * len(known_U) * np.finfo(np.float64).eps)
        return spectral_bound(pieces._replace(weight_U=pieces.weight_U * whole_U, home_U=None), steps) - saved
    num_experts = pieces.load_BE.shape[1]
    num_nodes, size = pieces.num_nodes, pieces.slots_per_node
    tangents = _Tangents(pieces)
    if num_nodes == 1:
        constant, matrix = tangents.at(np.ones((num_experts, num_experts)))
        return constant - float(matrix.sum()) - _error(matrix, size)
    mirror = _mirror_of_ones(num_experts)
    same = np.full((num_experts, num_experts), (size - 1) / max(num_experts - 1, 1))  # X of a random map, on average
    np.fill_diagonal(same, 1.0)
    constant, matrix = tangents.at(same)
    first = FIRST_STEP * float(np.abs(matrix - np.diag(np.diag(matrix))).max())
    price = np.zeros_like(matrix)  # Z
    best = -np.inf
    for step in range(steps):
        if step:
            share = 2.0 / (step + 2)
            new_constant, new_matrix = tangents.at(same)
            constant += share * (new_constant - constant)
            matrix = matrix + share * (new_matrix - matrix)
        whole = matrix + price
        values, vectors = eigh(
            _without_ones(whole, mirror),
            subset_by_index=[num_experts - num_nodes, num_experts - 2],
            check_finite=False,
            overwrite_a=True,
        )
        diagonal = np.diag(price).copy()
        below = np.minimum(price, 0.0)
        np.fill_diagonal(below, 0.0)
        most = whole.sum() / num_nodes + size * values.sum() - diagonal.sum() - below.sum()
        best = max(best, constant - float(most) - _error(whole, size * num_nodes) - _error(price, num_experts))
        vectors = np.vstack([np.zeros(num_nodes - 1), vectors])
        spanned = vectors - 2.0 * np.outer(mirror, mirror @ vectors)
        found = size * (spanned @ spanned.T + 1.0 / num_experts)
        same = same + (found - same) * (3.0 / (step + 3))
        stride = first / (1.0 + STEP_DECAY * step / steps)
        price = np.maximum(price - stride * found, 0.0) + np.minimum(price + stride * (1.0 - found), 0.0) * (price <= 0)
        np.fill_diagonal(price, diagonal - stride * (DIAGONAL_STEP / FIRST_STEP) * (np.diag(found) - 1.0))
    return best


class _SetLines(NamedTuple):
    """Sets of one size: cells u * E + v of their pairs, int64 [U, C], and lines a - b * pairs below their nodes."""

    pair_UC: npt.NDArray[np.int64]
    weight_U: Floats
    line_a: Floats
    line_b: Floats


class _Tangents:
    """Linear functions `constant - <matrix, X>` that lie below the cost everywhere and touch it at a point."""

    def __init__(self, pieces: Pieces) -> None:
        self.pieces = pieces
        self.num_experts = pieces.load_BE.shape[1]
        self.sides = [self._side(*group) for group in by_size(pieces.sets_UK)]
        self.away = 1.0 - 1.0 / pieces.num_nodes
        lightest = np.sort(pieces.load_BE, axis=1)[:, : pieces.slots_per_node].sum(axis=1)
        # weights 1/N + growth * (load_n - 1/N) stay >= 0 down to the lightest node that there can be
        self.growth_B = 1.0 / np.maximum(1.0 - pieces.num_nodes * lightest * (1 - 1e-12), 1e-3)

    def _side(self, rows: npt.NDArray[np.int64], sets_RK: npt.NDArray[np.integer]) -> _SetLines:
        top_k = sets_RK.shape[1]
        first, second = np.triu_indices(top_k, 1)
        pair_RC = sets_RK[:, first].astype(np.int64) * self.num_experts + sets_RK[:, second]
        lines = lower_lines(fewest_nodes(top_k, self.pieces.num_nodes, self.pieces.slots_per_node))
        # contiguous, so that the kernel is compiled for one layout
        return _SetLines(np.ascontiguousarray(pair_RC), self.pieces.weight_U[rows], *lines)

    def at(self, same: Floats) -> tuple[float, Floats]:
        pieces, size = self.pieces, self.num_experts
        half_V, same_V = np.zeros(size * size), np.ascontiguousarray(same).ravel()
        constant = self.away * sum((add_lines(side, same_V, half_V) for side in self.sides), 0.0)
        half = half_V.reshape(size, size)
        matrix = 0.5 * self.away * (half + half.T)
        spread_B = pieces.num_nodes * ((pieces.load_BE @ same) * pieces.load_BE).sum(axis=1) - 1.0
        price_B = pieces.price_B / pieces.fastest_node
        steep = (1.0 + self.growth_B * spread_B) / pieces.fastest_node > pieces.floor_B
        slope_B = np.where(steep, price_B * self.growth_B, 0.0)
        constant += float(np.where(steep, price_B - slope_B, pieces.price_B * pieces.floor_B).sum())
        return constant, np.asarray(matrix - pieces.num_nodes * (pieces.load_BE.T * slope_B) @ pieces.load_BE)


@kernel
def add_lines(side: _SetLines, same_V: Floats, half_V: Floats) -> float:
    """Take for every set the line a - b * pairs that is highest at `same_V`; add its slopes to the set's pairs.

    Returns the sum of weight * a.
    """
    pair_UC, weight_U, line_a, line_b = side
    constant = 0.0
    for u in range(pair_UC.shape[0]):
        pairs = 0.0
        for v in pair_UC[u]:
            pairs += same_V[v]
        highest = 0
        for line in range(1, line_a.shape[0]):
            if line_a[line] - line_b[line] * pairs > line_a[highest] - line_b[highest] * pairs:
                highest = line
        constant += weight_U[u] * line_a[highest]
        for v in pair_UC[u]:
            half_V[v] += weight_U[u] * line_b[highest]
    return constant


def _mirror_of_ones(size: int) -> Floats:
    """The vector m whose Householder reflection I - 2mm' maps the ones to the first axis, float64 [size]."""
    mirror = np.full(size, 1.0 / np.sqrt(size))
    mirror[0] += 1.0
    return np.asarray(mirror / np.linalg.norm(mirror))


def _without_ones(matrix: Floats, mirror: Floats) -> Floats:
    """The symmetric matrix on the vectors whose sum is 0, in the basis of the reflection, [size - 1, size - 1]."""
    image = matrix @ mirror
    shift = np.outer(mirror, image)
    return np.asarray((matrix - 2.0 * (shift + shift.T) + 4.0 * (mirror @ image) * np.outer(mirror, mirror))[1:, 1:])


def _error(matrix: Floats, scale: int) -> float:
    return float(ERROR_FACTOR * len(matrix) * scale * np.finfo(np.float64).eps * np.linalg.norm(matrix))
