"""How the domains differ, and how well a request's domain is told from the experts that it visits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
FOLDS = 5
PENALTIES = 2.0 ** np.arange(-8, 5)  # in units of the mean eigenvalue of the training requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    one: str
    other: str
    similarity: float
    distance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Similarity:
    """How alike the loads of the domains are; a layer's loads are divided by their sum.

    similarity  cosine of two domains' loads over all layers and experts; the diagonal compares one half of a domain's
                requests with the other half, so it is what chance leaves of 1
    distance    total variation, 0 to 1, mean over layers; the diagonal as above
    """

    domains: tuple[str, ...]
    requests: tuple[int, ...]
    similarity: tuple[tuple[float, ...], ...]
    distance: tuple[tuple[float, ...], ...]
    most: tuple[Pair, ...]
    least: tuple[Pair, ...]

    def as_halves(self) -> list[Pair]:
        """Pairs that are at least as alike as the halves of either, most alike first."""
        found = [
            Pair(one=one, other=other, similarity=self.similarity[a][b], distance=self.distance[a][b])
            for a, one in enumerate(self.domains)
            for b, other in enumerate(self.domains[:a])
            if self.similarity[a][b] >= max(self.similarity[a][a], self.similarity[b][b])
        ]
        return sorted(found, key=lambda pair: (-pair.similarity, pair.one, pair.other))


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Held out: each request's domain is told by a classifier that was fitted on other requests.

    tokens    of a request that were looked at; None for a part of it that `seen` names
    reached   share of the requests that have so many positions; the others are told from all that they have
    balanced  mean over domains of the share of its requests that are told right
    """

    seen: str
    tokens: int | None
    reached: float
    accuracy: float
    balanced: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Telling:
    """How well the domain of a request is told.

    majority   accuracy of always naming the most frequent domain
    confusion  requests by true (rows) and told domain (columns), told from the first part
    kinds      the kind of each domain, where those that are as alike as their halves are one kind (`as_halves`), and
               those that share such a partner too; kind_accuracy and kind_majority are of telling it from the first
               part. None where all domains are kinds of their own, or all one kind.
    """

    domains: tuple[str, ...]
    requests: int
    folds: int
    majority: float
    first: Accuracy
    whole: Accuracy
    steps: tuple[Accuracy, ...]
    confusion: tuple[tuple[int, ...], ...]
    kinds: tuple[int, ...] | None
    kind_accuracy: float | None
    kind_majority: float | None


def kinds_of(found: Similarity) -> tuple[int, ...]:
    """Kind of every domain, numbered in the order of the domains: linked by pairs that are as alike as halves."""
    kind_of = list(range(len(found.domains)))
    for pair in found.as_halves():
        one, other = (kind_of[found.domains.index(name)] for name in (pair.one, pair.other))
        kind_of = [min(one, other) if kind in (one, other) else kind for kind in kind_of]
    order = {kind: number for number, kind in enumerate(dict.fromkeys(kind_of))}
    return tuple(order[kind] for kind in kind_of)


def similarity(count_LQE: npt.NDArray[np.uint32], label_Q: Labels, names: Sequence[str], shown: int = 3) -> Similarity:
    """Of two or more domains with two or more requests each."""
    halves = np.zeros((2, len(names), *count_LQE.shape[::2]))
    for label in range(len(names)):
        mine = np.flatnonzero(label_Q == label)
        for half in (0, 1):
            halves[half, label] = count_LQE[:, mine[half::2]].sum(axis=1)
    whole = _shares(halves.sum(axis=0))
    one, other = _shares(halves[0]), _shares(halves[1])
    cosine_DD = _cosine(whole, whole)
    np.fill_diagonal(cosine_DD, np.diag(_cosine(one, other)))
    apart_DD = np.array([np.abs(whole - load).sum(axis=2).mean(axis=1) / 2 for load in whole])
    np.fill_diagonal(apart_DD, np.abs(one - other).sum(axis=2).mean(axis=1) / 2)
    pairs = sorted(
        (
            Pair(one=names[a], other=names[b], similarity=float(cosine_DD[a, b]), distance=float(apart_DD[a, b]))
            for a in range(len(names))
            for b in range(a)
        ),
        key=lambda pair: (-pair.similarity, pair.one, pair.other),
    )
    return Similarity(
        domains=tuple(names),
        requests=tuple(np.bincount(label_Q[label_Q >= 0], minlength=len(names)).tolist()),
        similarity=tuple(map(tuple, cosine_DD.tolist())),
        distance=tuple(map(tuple, apart_DD.tolist())),
        most=tuple(pairs[:shown]),
        least=tuple(reversed(pairs[-shown:])),
    )


def _shares(load_DLE: Float) -> Float:
    return np.asarray(load_DLE / np.maximum(load_DLE.sum(axis=2, keepdims=True), 1))


def _cosine(one_DLE: Float, other_DLE: Float) -> Float:
    flat = [part.reshape(len(part), -1) for part in (one_DLE, other_DLE)]
    unit = [part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-300) for part in flat]
    return np.asarray(unit[0] @ unit[1].T)


def gram(count_LQE: npt.NDArray[np.uint32]) -> Float:
    """Inner products of the requests' features, float64 [Q, Q]: the square roots of the shares of a layer's experts."""
    total = np.zeros((count_LQE.shape[1],) * 2)
    for count_QE in count_LQE:
        share_QE = count_QE / np.maximum(count_QE.sum(axis=1, keepdims=True), 1)
        root_QE = np.sqrt(share_QE)
        total += root_QE @ root_QE.T
    return total


def folds_of(label_Q: Labels, seed: int) -> Labels:
    """Fold of every request, int64 [Q]: each domain is dealt evenly over FOLDS folds, seeded."""
    generator = np.random.default_rng(seed)
    fold_Q = np.empty(len(label_Q), dtype=np.int64)
    start = 0
    for label in range(int(label_Q.max()) + 1):
        mine = generator.permutation(np.flatnonzero(label_Q == label))
        fold_Q[mine] = (start + np.arange(len(mine))) % FOLDS
        start += len(mine)
    return fold_Q


def told_labels(gram_QQ: Float, label_Q: Labels, fold_Q: Labels) -> Labels:
    """Label of every request as told by ridge regression on the labels of the requests of the other folds, int64 [Q].

    The penalty is the one with the least leave-one-out error on those other folds, so the fold that is told plays no
    part in it.
    """
    told_Q = np.empty_like(label_Q)
    for fold in np.unique(fold_Q):
        train, test = np.flatnonzero(fold_Q != fold), np.flatnonzero(fold_Q == fold)
        told_Q[test] = _ridge(gram_QQ[np.ix_(train, train)], gram_QQ[np.ix_(test, train)], label_Q[train])
    return told_Q


def _ridge(train_NN: Float, test_MN: Float, label_N: Labels) -> Labels:
    """Kernel ridge regression on one column a label, with an intercept; the column with the largest value is told."""
    mean_N, mean = train_NN.mean(axis=0), train_NN.mean()
    centred_NN = train_NN - mean_N - mean_N[:, None] + mean
    centred_MN = test_MN - test_MN.mean(axis=1, keepdims=True) - mean_N + mean
    target_ND = np.eye(int(label_N.max()) + 1)[label_N]
    offset_D = target_ND.mean(axis=0)
    target_ND = target_ND - offset_D
    value_N, vector_NN = np.linalg.eigh(centred_NN)
    value_N = np.maximum(value_N, 0)
    turned_ND = vector_NN.T @ target_ND
    best = (np.inf, 1.0)
    for penalty in PENALTIES * max(float(value_N.mean()), 1e-12):
        kept_N = value_N / (value_N + penalty)
        leverage_N = vector_NN**2 @ kept_N + 1 / len(label_N)
        missed = (target_ND - vector_NN @ (kept_N[:, None] * turned_ND)) / np.maximum(1 - leverage_N, 1e-9)[:, None]
        best = min(best, (float((missed**2).sum()), float(penalty)))
    weight_ND = vector_NN @ (turned_ND / (value_N + best[1])[:, None])
    return np.asarray((centred_MN @ weight_ND + offset_D).argmax(axis=1))


def accuracy(told_Q: Labels, label_Q: Labels, seen: str, tokens: int | None, reached: float) -> Accuracy:
    right_Q = (told_Q == label_Q).astype(np.float64)
    by_label = np.bincount(label_Q, weights=right_Q) / np.bincount(label_Q)
    return Accuracy(
        seen=seen, tokens=tokens, reached=reached, accuracy=float(right_Q.mean()), balanced=float(by_label.mean())
    )
