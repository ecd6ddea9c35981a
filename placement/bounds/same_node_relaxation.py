"""The part of the Lagrangian bound that sees the shared same-node matrix: the most that it can earn, by eigenvalues.

Node n hosts the experts z_n, 0 or 1 each, exactly m of them: with copies one more never sends more. The matrix
X = sum over nodes of z_n z_n' counts the nodes that host both of two experts; its diagonal h those that host an expert.
h is 1 or more and sums to Nm; R = Nm - E further copies are free to choose. X1 = mh, and 1'X1 = Nm^2. Off the ones, X
has the eigenvalues of the products of z_n - m/E, of trace T = Nm - Nm^2/E: the k < N largest sum to km + R at most, as
an expert with c further copies lifts any k of them by c at most. So with P the projection off the ones

    <A, X> <= Nm^2/E^2 * 1'A1 + 2m/E * h'PA1 + sum over k of w_k * (k-th largest eigenvalue of PAP)

with w the rises of min(km + R, T), and the best h gives the further copies to whom they earn most. What else is true
is priced: the diagonal is h, entries are at least 0 and at most the mean of their experts' h, and with one copy of each
sharing a node is transitive: x_uv + x_vw - x_uw <= 1.

Where homes are given, every node has one more element beside its m experts, its home: all of the above holds with m + 1
for m and E + N for E, homes share no node, and X is orthogonal to the vector that is 1 at experts and -m at homes; the
ones are then what is left of them off that vector.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MOST_EXPERTS_WITH_TRIANGLES = 64  # E^3 / 2 prices: 14,880 for 32 experts, 124,992 for 64
MOST_EXACT = 64  # the eigenvalues of larger matrices are of single precision until the bound is judged
LEADING_VECTORS = 24
BISECTIONS = 50


class Earned(NamedTuple):
    """What the best X earns.

    most     no X earns more, but for rounding; only about that, unless exact
    same_EE  float64 [E, E], a relaxed X that earns about as much: the smoothed gradient
    hosts_E  float64 [E], its diagonal, as it should be
    norm     magnitude of all that was added up, for the rounding error
    """

    most: float
    same_EE: Floats
    hosts_E: Floats
    norm: float


class SharedMatrix:
    """Same-node matrices of E experts on N nodes of m slots; with `homes`, of E + N elements, the homes last."""

    def __init__(self, num_experts: int, num_nodes: int, slots_per_node: int, *, homes: bool = False) -> None:
        self.num_experts, self.num_nodes, self.slots = num_experts, num_nodes, slots_per_node + homes
        self.size = num_experts + homes * num_nodes
        self.further = num_nodes * slots_per_node - num_experts  # copies
        self.ones_E = np.ones(self.size)
        left = [self.ones_E]
        if homes:
            beside_E = np.where(np.arange(self.size) < num_experts, 1.0, -float(slots_per_node))
            self.ones_E = self.ones_E - beside_E * (beside_E.sum() / (beside_E @ beside_E))
            left = [self.ones_E, beside_E]
        self.basis = complement(np.stack(left, axis=1))
        self.share = self.slots / float(self.ones_E @ self.ones_E)
        self.most_eigenvalue_K = self._eigenvalues(num_nodes * self.slots * (1 - self.share))
        self.near_DT = self._triangles()

    def _eigenvalues(self, trace: float) -> Floats:
        """The most that the largest eigenvalues of X off the ones can be, falling, float64 [at most N]."""
        count = min(self.num_nodes, self.basis.shape[1])
        sums_K = np.minimum(np.arange(1, count + 1) * self.slots + self.further, trace)
        sums_K[count - 1 :] = trace
        return np.diff(sums_K, prepend=0.0)

    def most_EE(self, hosts_E: Floats) -> Floats:
        """What the entries of X are at most: 0 between homes, 1 between an expert and a home."""
        first = self.num_experts
        most_EE = 0.5 * (hosts_E[:, None] + hosts_E)
        most_EE[first:] = most_EE[:, first:] = 1.0
        most_EE[first:, first:] = np.eye(self.size - first)
        return np.asarray(most_EE)

    def _triangles(self) -> Ints:
        """Positions u * E + v, u < v, of the two pairs that are added and the one that is taken off, int64 [3, T]."""
        if self.further or self.size > MOST_EXPERTS_WITH_TRIANGLES or self.size < 3:
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
        self,
        reward_EE: Floats,
        host_E: Floats,
        price_EE: Floats,
        triangle_T: Floats,
        smoothing: float,
        *,
        exact: bool = True,
        leading: bool = False,
    ) -> Earned:
        """The most of <reward, X> + host . h, when `price_EE` and `triangle_T` price what X has to obey.

        reward_EE  float64 [E, E], symmetric
        host_E     float64 [E], of the nodes that host an expert
        price_EE   float64 [E, E], symmetric: off the diagonal positive prices x >= 0 and negative what x is at most;
                   the diagonal prices that of X, of any sign
        triangle_T float64 [T], >= 0
        smoothing  width of the step between eigenvectors that X has and has not, of the spread of eigenvalues
        exact      False: where matrices are large, in single precision
        leading    then of the leading eigenvectors alone: a short climb sees no more of X
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
        row_E, share = whole @ self.ones_E, self.share
        total = float(self.ones_E @ row_E)
        below_E, above = self._paid(price_EE)
        gain_E = host_E + 2 * share * self._off_ones(row_E) - np.diag(price_EE) + below_E
        few = max(LEADING_VECTORS, len(self.most_eigenvalue_K) + 1) if leading else None
        values, vectors, spread = eigenvectors(whole, self.basis, exact=exact, leading=few)
        falling_K = values[::-1][: len(self.most_eigenvalue_K)]
        most = self.num_nodes * share * share * total + float(falling_K @ self.most_eigenvalue_K) + above
        most += float(gain_E.sum()) + self._further(gain_E) + float(triangle_T.sum())
        width = max(smoothing * spread, 1e-12)
        chosen = _smooth_choice(values, float(self.most_eigenvalue_K.sum()) / self.slots, width)
        spanned = vectors * np.sqrt(self.slots * chosen)
        hosts_E = self._smooth_hosts(gain_E, width)
        ones_EE = np.outer(share * self._off_ones(hosts_E) + 0.5 * self.num_nodes * share**2 * self.ones_E, self.ones_E)
        same_EE = spanned @ spanned.T + ones_EE + ones_EE.T
        norm = self.num_nodes * float(np.linalg.norm(whole) + np.linalg.norm(price_EE) + np.abs(triangle_T).sum())
        norm += self.num_nodes * float(np.linalg.norm(host_E))
        return Earned(float(most), np.asarray(same_EE), hosts_E, norm)

    def _off_ones(self, vector_E: Floats) -> Floats:
        return np.asarray(self.basis @ (self.basis.T @ vector_E))

    def _paid(self, price_EE: Floats) -> tuple[Floats, float]:
        """What is paid for entries being at most what they are: for each of an expert's hosts, and for homes."""
        first = self.num_experts
        below_EE = -np.minimum(price_EE, 0.0)
        np.fill_diagonal(below_EE, 0.0)
        paid_E = below_EE[:, :first].sum(axis=1)
        paid_E[first:] = 0.0
        return paid_E, 2 * float(below_EE[:first, first:].sum())

    def _further(self, gain_E: Floats) -> float:
        """What the further copies earn, at most N - 1 of an expert."""
        left, earned = self.further, 0.0
        for gain in np.sort(gain_E[: self.num_experts])[::-1]:
            copies = min(left, self.num_nodes - 1)
            earned, left = earned + copies * float(gain), left - copies
            if not left:
                break
        return earned

    def _smooth_hosts(self, gain_E: Floats, width: float) -> Floats:
        """How many nodes host each element, smoothed."""
        hosts_E = np.ones(self.size)
        if self.further:
            most, gain_E = self.num_nodes - 1, gain_E[: self.num_experts]
            order = np.argsort(gain_E, kind="stable")
            hosts_E[order] += most * _smooth_choice(gain_E[order], self.further / most, width)
        return hosts_E


def eigenvectors(matrix: Floats, basis: Floats, *, exact: bool, leading: int | None) -> tuple[Floats, Floats, float]:
    """Of a symmetric matrix on the span of a basis: eigenvalues, ascending, their vectors in columns, and about the
    spread of all eigenvalues. Unless `exact`, those of large matrices are of single precision, the `leading` last
    alone if that is a number.
    """
    if exact or len(matrix) <= MOST_EXACT:
        values, vectors = eigh(basis.T @ matrix @ basis, check_finite=False, driver="evd")
        return values, basis @ vectors, float(values[-1] - values[0]) if len(values) else 0.0
    single = basis.astype(np.float32)
    inner = single.T @ matrix.astype(np.float32) @ single
    some: dict[str, Any] = {"driver": "evd"}
    if leading is not None and leading < len(inner):
        some = {"subset_by_index": [len(inner) - leading, len(inner) - 1]}
    values, vectors = eigh(inner, check_finite=False, **some)
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


def _smooth_choice(values: Floats, count: float, width: float) -> Floats:
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
