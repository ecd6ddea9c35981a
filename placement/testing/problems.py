"""Small layer problems: random, planted, and tiny ones whose optimum brute force finds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.cost.sets import distinct_sets
from placement.solvers.options import Options
from placement.solvers.problem import LayerProblem

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


def make_problem(
    ids_TK: npt.NDArray[np.integer],
    cluster: Cluster,
    *,
    num_experts: int,
    options: Options | None = None,
    num_groups: int | None = None,
    bootstraps: int = 3,
    seed: int = 0,
) -> LayerProblem:
    """The problem of one layer whose tokens visit `ids_TK`; each token counts as a request.

    ids_TK: distinct ids in a row; a short set has -1 in its last places.
    """
    cluster.check_fits(num_experts)
    sets_UK, count_U = distinct_sets(ids_TK, num_experts)
    visits_TE = np.zeros((len(ids_TK), num_experts + 1), dtype=np.int64)
    np.put_along_axis(visits_TE, np.asarray(ids_TK, dtype=np.int64), 1, axis=1)
    visits_TE = visits_TE[:, :-1]  # -1 is the last column
    rng = np.random.default_rng([seed, 1])
    weight_BT = rng.multinomial(len(ids_TK), np.full(len(ids_TK), 1 / len(ids_TK)), size=bootstraps)
    load_BE = np.concatenate([visits_TE.sum(axis=0)[None], weight_BT @ visits_TE]).astype(np.float64)
    load_BE[~load_BE.any(axis=1)] = 1.0  # no token that was drawn visits an expert
    coact_EE = (visits_TE.T.astype(np.float64) @ visits_TE).astype(np.int64)  # exact, and BLAS has no integers
    np.fill_diagonal(coact_EE, 0)
    return LayerProblem(
        index=0,
        num_experts=num_experts,
        top_k=ids_TK.shape[1],
        num_groups=num_groups,
        cluster=cluster,
        options=options or Options(),
        sets_UK=sets_UK,
        count_U=count_U,
        load_BE=load_BE / load_BE.sum(axis=1, keepdims=True),
        coact_EE=coact_EE,
        seed=seed,
    )


def short_sets(rng: np.random.Generator, ids_LTK: npt.NDArray[Any], share: float) -> npt.NDArray[np.int64]:
    """Sets without that share of their places, -1 at their ends; every token keeps an expert in some layer.

    Args:
        rng: What draws the places.
        ids_LTK: Full sets, whole numbers [L, T, K].
        share: Of the places.
    """
    gone_LTK = rng.random(ids_LTK.shape) < share
    gone_LTK[0, gone_LTK.all(axis=(0, 2)), 0] = False
    return _without(ids_LTK, gone_LTK)


def _without(ids_TK: npt.NDArray[Any], gone_TK: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Sets [..., T, K] without some of their places: the others first, then -1."""
    order_TK = np.argsort(gone_TK, axis=-1, kind="stable")
    return np.take_along_axis(np.where(gone_TK, -1, ids_TK.astype(np.int64)), order_TK, axis=-1)


def random_problem(
    num_experts: int,
    top_k: int,
    cluster: Cluster,
    *,
    num_tokens: int = 200,
    skew: float = 0.5,
    lacking: float = 0.0,
    seed: int = 0,
    **more: Any,
) -> LayerProblem:
    """Tokens draw experts without structure.

    skew: spread of the experts' log popularity.
    lacking: share of the places of sets that is empty, at random: sets are of any size from none to `top_k`.
    """
    rng = np.random.default_rng([seed, 0])
    popularity_E = rng.normal(0.0, skew, num_experts)
    noise_TE = rng.gumbel(size=(num_tokens, num_experts))
    ids_TK = np.argsort(-(popularity_E + noise_TE), axis=1)[:, :top_k]
    if lacking:
        ids_TK = _without(ids_TK, rng.random(ids_TK.shape) < lacking)
    return make_problem(ids_TK, cluster, num_experts=num_experts, seed=seed, **more)


def planted_problem(
    num_experts: int,
    top_k: int,
    cluster: Cluster,
    *,
    num_tokens: int = 400,
    stray: float = 0.1,
    seed: int = 0,
    **more: Any,
) -> tuple[LayerProblem, npt.NDArray[np.int32]]:
    """Experts fall into one hidden group a node and tokens stay in a group, but for a share `stray` of them.

    Returns the problem and the map that keeps each group on a node, int32 [P]. One copy per expert; a group has to have
    at least `top_k` experts.
    """
    rng = np.random.default_rng([seed, 2])
    hidden_NM = rng.permutation(num_experts).reshape(cluster.num_nodes, cluster.slots_per_node)
    rows = []
    for token in range(num_tokens):
        pool = np.arange(num_experts) if rng.random() < stray else hidden_NM[token % cluster.num_nodes]
        rows.append(rng.choice(pool, top_k, replace=False))
    problem = make_problem(np.stack(rows), cluster, num_experts=num_experts, seed=seed, **more)
    return problem, hidden_NM.ravel().astype(np.int32)


def brute_force(problem: LayerProblem) -> tuple[float, npt.NDArray[np.int32]]:
    """The lowest objective of any map and a map that has it; the cap on imbalance is not looked at. Tiny problems only.

    Maps that differ only in the order of a rank's slots count once; nothing else is left out.
    """
    cluster = problem.cluster
    best, best_row = np.inf, np.zeros(0, dtype=np.int32)
    for row in all_maps(problem.num_experts, cluster.num_ranks, cluster.slots_per_gpu):
        objective = problem.score(row).objective
        if objective < best:
            best, best_row = objective, row
    return float(best), best_row


def all_maps(num_experts: int, num_ranks: int, slots: int) -> Iterator[npt.NDArray[np.int32]]:
    """Every sound map of one layer, int32 [P]; those that differ only in the order of a rank's slots come once."""
    ranks = list(itertools.combinations(range(num_experts), slots))
    needed = (1 << num_experts) - 1
    masks = [sum(1 << e for e in held) for held in ranks]

    def extend(chosen: list[int], seen: int, total: int) -> Iterator[npt.NDArray[np.int32]]:
        left = num_ranks - len(chosen)
        if (needed & ~seen).bit_count() > left * slots:
            return
        if left == 0:
            yield np.array([e for index in chosen for e in ranks[index]], dtype=np.int32)
            return
        for index, mask in enumerate(masks):
            if total == num_experts and seen & mask:
                continue  # one copy per expert
            yield from extend([*chosen, index], seen | mask, total)

    return extend([], 0, num_ranks * slots)


def tiny_problems(*, redundant: bool = False) -> SearchStrategy[LayerProblem]:
    """Hypothesis strategy: problems that `brute_force` solves in well under a second. Needs hypothesis."""
    from hypothesis import strategies as st

    shapes = [(4, 2, 2, 1, 3), (3, 1, 3, 1, 4)] if redundant else [(4, 2, 2, 1, 2), (6, 2, 3, 1, 2), (6, 3, 2, 1, 3)]

    @st.composite
    def problem(draw: Any) -> LayerProblem:
        num_experts, top_k, nodes, gpus, slots = draw(st.sampled_from(shapes))
        slots = min(slots, num_experts)
        return random_problem(
            num_experts,
            top_k,
            Cluster(num_nodes=nodes, gpus_per_node=gpus, slots_per_gpu=slots),
            num_tokens=draw(st.integers(1, 40)),
            skew=draw(st.sampled_from([0.0, 0.5, 2.0])),
            lacking=draw(st.sampled_from([0.0, 0.1, 0.6, 1.0])),
            seed=draw(st.integers(0, 10_000)),
            options=Options(balance_weight=draw(st.sampled_from([0.0, 0.5, 2.0]))),
        )

    return problem()
