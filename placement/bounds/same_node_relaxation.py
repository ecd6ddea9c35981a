"""The part of the Lagrangian bound that sees the shared same-node matrix: the most that it can earn, by eigenvalues.

X[a, b] = 1 if experts a and b share a node. Its rows sum to m, its diagonal is 1 and its eigenvalues lie in 0..m, so
X = m * (11'/E + Y) with Y between 0 and 1, of trace N - 1 and orthogonal to 1. What else is true of it is priced:
entries are in 0..1, and sharing a node is transitive: x_uv + x_vw - x_uw <= 1.

Where homes are given, every node has one more element beside its m experts, its home: all of the above holds with m + 1
for m, homes share no node, and X is orthogonal to the vector that is 1 at experts and -m at homes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MOST_EXPERTS_WITH_TRIANGLES = 64  # E^3 / 2 prices: 14,880 for 32 experts, 124,992 for 64
MOST_WITH_ALL_VECTORS = 64  # larger matrices give their leading eigenvectors alone, in single precision, until judged
LEADING_VECTORS = 24
BISECTIONS = 50


class Earned(NamedTuple):
    """What the best X earns.

    most     no X earns more, but for rounding; only about that, unless exact
    same_EE  float64 [E, E], a relaxed X that earns about as much: the smoothed gradient
    norm     magnitude of all that was added up, for the rounding error
    """

    most: float
    same_EE: Floats
    norm: float


class SharedMatrix:
    """Same-node matrices of E experts on N nodes of m slots; with `homes`, of E + N elements, the homes last.

    most_EE  float64 [E, E], what the entries of X are at most: 0 between homes, else 1
    """

    def __init__(self, num_nodes: int, slots_per_node: int, *, homes: bool = False) -> None:
        self.num_nodes, self.slots = num_nodes, slots_per_node + homes
        self.size = num_nodes * self.slots
        experts = num_nodes * slots_per_node
        self.most_EE = np.ones((self.size, self.size))
        self.most_EE[experts:, experts:] = np.eye(self.size - experts)
        left = np.ones((self.size, 1))
        if homes:
            left = np.stack([left[:, 0], np.where(np.arange(self.size) < experts, 1.0, -float(slots_per_node))], axis=1)
        self.basis = complement(left)
        self.near_DT = self._triangles()

    def _triangles(self) -> Ints:
        """Positions u * E + v, u < v, of the two pairs that are added and the one that is taken off, int64 [3, T]."""
        if self.size > MOST_EXPERTS_WITH_TRIANGLES or self.size < 3:
            return np.zeros((3, 0), dtype=np.int64)
        u, v, w = np.array(
            [(a, b, c) for a in range(self.size) for b in range(a + 1, self.size) for c in range(b + 1, self.size)]
        ).T
        uv, vw, uw = u * self.size + v, v * self.size + w, u * self.size + w
        return np.stack([np.concatenate([uv, vw, uw]), np.concatenate([vw, uw, uv]), np.concatenate([uw, uv, vw])])

    def transitive(self, same_EE: Floats) -> Floats:
        """By how much each triangle inequality is broken, float64 [T]."""
        flat = same_EE.ravel()
        first, second, taken = self.near_DT
        return np.asarray(flat[first] + flat[second] - flat[taken] - 1.0)

    def earn(
        self, reward_EE: Floats, price_EE: Floats, triangle_T: Floats, smoothing: float, *, exact: bool = True
    ) -> Earned:
        """The most of <reward, X>, when `price_EE` and `triangle_T` price what X has to obey.

        price_EE   float64 [E, E], symmetric: off the diagonal positive prices x >= 0 and negative x <= 1; the diagonal
                   prices that of X, of any sign
        triangle_T float64 [T], >= 0
        smoothing  width of the step between eigenvectors that X has and has not, of the spread of eigenvalues
        exact      False: where matrices are large, of the leading eigenvectors alone
        """
        whole = reward_EE + price_EE
        if len(triangle_T):
            first, second, taken = self.near_DT
            cells = self.size * self.size
            half = (
                np.bincount(first, triangle_T, cells)
                + np.bincount(second, triangle_T, cells)
                - np.bincount(taken, triangle_T, cells)
            ).reshape(self.size, self.size)
            whole -= 0.5 * (half + half.T)
        values, vectors, spread = eigenvectors(whole, self.basis, exact=exact)
        below = np.minimum(price_EE, 0.0)
        below *= self.most_EE
        np.fill_diagonal(below, 0.0)
        count = self.num_nodes - 1
        top = float(values[len(values) - count :].sum())
        most = whole.sum() / self.num_nodes + self.slots * top - np.trace(price_EE) - below.sum() + triangle_T.sum()
        chosen = _smooth_choice(values, count, max(smoothing * spread, 1e-12))
        spanned = vectors * np.sqrt(chosen)
        same_EE = self.slots * (spanned @ spanned.T + 1.0 / self.size)
        norm = float(np.linalg.norm(whole) + np.linalg.norm(price_EE) + np.abs(triangle_T).sum())
        return Earned(float(most), same_EE, norm)


def eigenvectors(matrix: Floats, basis: Floats, *, exact: bool) -> tuple[Floats, Floats, float]:
    """Of a symmetric matrix on the span of a basis: eigenvalues, ascending, their vectors in columns, and about the
    spread of all eigenvalues. Unless `exact`, large matrices give what leads, to single precision.
    """
    if exact or len(matrix) <= MOST_WITH_ALL_VECTORS:
        values, vectors = eigh(basis.T @ matrix @ basis, check_finite=False, driver="evd")
        return values, basis @ vectors, float(values[-1] - values[0]) if len(values) else 0.0
    single = basis.astype(np.float32)
    inner = single.T @ matrix.astype(np.float32) @ single
    last = len(inner) - 1
    values, vectors = eigh(inner, subset_by_index=[last + 1 - LEADING_VECTORS, last], check_finite=False)
    spread = 2.0 * float(values[-1] - np.trace(inner) / len(inner))
    return values.astype(np.float64), (single @ vectors).astype(np.float64), spread


def complement(vectors: Floats) -> Floats:
    """An orthonormal basis of what is orthogonal to the columns, which are orthogonal to each other: by reflections."""
    size, count = vectors.shape
    basis = np.eye(size)
    for column in range(count):
        image = basis.T @ vectors[:, column]
        image[:column] = 0.0
        mirror = image / np.linalg.norm(image)
        mirror[column] += 1.0 if mirror[column] >= 0 else -1.0
        mirror /= np.linalg.norm(mirror)
        basis -= 2.0 * np.outer(basis @ mirror, mirror)
    return np.asarray(basis[:, count:])


def _smooth_choice(values: Floats, count: int, width: float) -> Floats:
    """Weights in 0..1 of sum `count`, near 1 for the largest values (a Fermi function of that width)."""
    if count >= len(values):
        return np.ones_like(values)
    low, high = float(values[0]) - 40 * width, float(values[-1]) + 40 * width
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        weights = 1.0 / (1.0 + np.exp(np.clip((middle - values) / width, -500, 500)))
        if weights.sum() > count:
            low = middle
        else:
            high = middle
    return np.asarray(weights)
