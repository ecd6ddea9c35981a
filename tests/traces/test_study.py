"""Figures of a study equal those of loops over tokens, and do not depend on shards, order or workers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from study_traces import Array, first_part, planted, relabel, studied, study_of

from placement.analysis.info import describe
from placement.analysis.info.domains import PENALTIES, folds_of, told_labels
from placement.analysis.info.kernels import pack_evenly
from placement.analysis.info.study_measures import gini, group_imbalance, top_share
from placement.errors import OptionError
from placement.traces.trace import open_trace


@pytest.fixture
def small(tmp_path: Path, write_trace: Any) -> Any:
    """12 requests of two domains and of uneven length, small enough for loops over all pairs of tokens."""
    request_T = np.sort(np.random.default_rng(3).integers(0, 12, size=150))
    trace = write_trace(
        tmp_path / "t", tokens=150, num_experts=9, top_k=2, request_T=request_T, requests=12, num_shards=3
    )
    relabel(trace, ["a" if q % 2 else "b" for q in range(12)])
    return trace


def test_what_tokens_share_is_the_mean_over_all_pairs_of_tokens(small: Any) -> None:
    """Closed forms against a loop: same request, another request of the domain, another domain."""
    study = study_of(small)
    domain_T = small.request_T % 2
    for layer, ids_TK in enumerate(small.ids_LTK):
        common_TT = (ids_TK[:, None, :, None] == ids_TK[None, :, None, :]).sum(axis=(2, 3)) / 2
        same_TT = small.request_T[:, None] == small.request_T[None]
        near_TT = (domain_T[:, None] == domain_T[None]) & ~same_TT
        far_TT = domain_T[:, None] != domain_T[None]
        np.fill_diagonal(same_TT, False)
        for mask_TT, measure in ((same_TT, "request"), (near_TT, "domain"), (far_TT, "other")):
            by_token = [common_TT[t][mask_TT[t]].mean() for t in range(150) if mask_TT[t].any()]
            assert getattr(study.layers[layer], f"overlap_{measure}") == pytest.approx(np.mean(by_token))


def test_what_info_tells_too_is_told_alike(small: Any) -> None:
    """Skew, variation, drift and overlap are those of `placement traces info`."""
    study, info = study_of(small), describe(open_trace(small.folder))
    for mine, theirs in (
        ("load_skew", "load_skew"),
        ("load_cv", "load_cv"),
        ("drift", "domain_drift"),
        ("overlap_next", "overlap"),
        ("overlap_chance", "overlap_chance"),
    ):
        assert study.values(mine) == pytest.approx(info.values(theirs))


def test_foretelling_is_the_mean_of_plain_correlations(small: Any) -> None:
    """numpy's corrcoef for every pair of requests, of parts that were counted by hand."""
    study = study_of(small)
    first_T = first_part(small)
    for layer, ids_TK in enumerate(small.ids_LTK):
        parts = np.zeros((2, 12, 9))
        for t in range(150):
            parts[int(not first_T[t]), small.request_T[t], ids_TK[t]] += 1
        found: dict[str, list[float]] = {"own": [], "same_domain": [], "other_domain": []}
        for q in range(12):
            for r in range(12):
                kind = "own" if q == r else "same_domain" if (q - r) % 2 == 0 else "other_domain"
                found[kind].append(np.corrcoef(parts[0, q], parts[1, r])[0, 1])
        for kind, values in found.items():
            assert getattr(study.layers[layer], kind) == pytest.approx(np.mean(values))


def test_homes_are_those_of_loops_over_tokens(small: Any) -> None:
    """Shares served and sends of the second parts, with favourites and homes chosen request by request."""
    homes = study_of(small, num_nodes=3).homes
    assert homes is not None and homes.held == 3
    first_T = first_part(small)
    touched = np.zeros((2, 12, 3))
    counts = np.zeros((2, 2, 12, 9))
    for layer, ids_TK in enumerate(small.ids_LTK):
        for t in range(150):
            part, request = int(not first_T[t]), small.request_T[t]
            counts[layer, part, request, ids_TK[t]] += 1
            touched[part, request, sorted(set(ids_TK[t] // 3))] += 1
    assignments = counts[:, 1].sum()
    assert homes.best == pytest.approx(np.sort(counts[:, 1], axis=2)[:, :, -3:].sum() / assignments)
    served = 0.0
    for layer in range(2):
        for q in range(12):
            others = counts[layer].sum(axis=(0, 1)) - counts[layer, :, q].sum(axis=0)
            served += counts[layer, 1, q, np.argsort(-others, kind="stable")[:3]].sum()
    assert homes.all == pytest.approx(served / assignments)
    tokens = assignments / 2
    assert homes.sends_random == pytest.approx(touched[1].sum() * 2 / 3 / tokens)
    assert homes.sends_best == pytest.approx((touched[1].sum() - touched[1].max(axis=1).sum()) / tokens)
    at_first = touched[1][np.arange(12), touched[0].argmax(axis=1)].sum()
    assert homes.sends_first == pytest.approx((touched[1].sum() - at_first) / tokens)
    assert homes.sends_best <= min(homes.sends_first, homes.sends_random)
    assert homes.best >= max(homes.first, homes.all)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any))
def test_gini_is_half_the_relative_mean_difference(loads: list[int]) -> None:
    load_E = np.array(loads)
    assert gini(load_E) == pytest.approx(np.abs(load_E[:, None] - load_E[None]).mean() / (2 * load_E.mean()), abs=1e-12)
    assert top_share(load_E) == sum(sorted(loads, reverse=True)[: (len(loads) + 9) // 10]) / sum(loads)


def test_the_answer_does_not_depend_on_shards_order_or_workers(tmp_path: Path, write_trace: Any) -> None:
    """Tokens in any order, cut anywhere, counted by any number of threads: the same answer."""
    whole = planted(tmp_path / "a", write_trace, requests=30)
    order = np.random.default_rng(5).permutation(len(whole.request_T))
    from safetensors.numpy import load_file, save_file

    tensors = load_file(whole.shards[0])
    turned = {
        name: np.ascontiguousarray(value[:, order] if value.ndim == 3 else value[order])
        for name, value in tensors.items()
    }
    other = tmp_path / "b"
    other.mkdir()
    (other / "trace.json").write_bytes((whole.folder / "trace.json").read_bytes())
    save_file(turned, other / "shard-00000.safetensors", metadata={"schema": "expert-trace/1"})
    expected = study_of(whole).document()
    with ThreadPoolExecutor(3) as executor:
        assert studied(open_trace(other), executor).document() == expected


def test_ridge_is_that_of_the_normal_equations_with_explicit_leave_one_out() -> None:
    """Told labels against a primal ridge whose penalty was chosen by fitting without each request in turn."""
    rng = np.random.default_rng(2)
    label_Q = np.repeat([0, 1, 2], 8)
    x = rng.normal(size=(24, 5)) + 1.2 * np.eye(5)[label_Q]
    fold_Q = folds_of(label_Q, 0)

    def fit(rows: Array, penalty: float) -> tuple[Array, Array]:
        mean, target = x[rows].mean(axis=0), np.eye(3)[label_Q[rows]]
        centred = x[rows] - mean
        weight = np.linalg.solve(centred.T @ centred + penalty * np.eye(5), centred.T @ (target - target.mean(axis=0)))
        return weight, target.mean(axis=0) - mean @ weight

    told_Q = np.empty(24, dtype=int)
    for fold in range(5):
        train, test = np.flatnonzero(fold_Q != fold), np.flatnonzero(fold_Q == fold)
        centred = x[train] - x[train].mean(axis=0)
        scale = np.linalg.eigvalsh(centred @ centred.T).clip(0).mean()
        errors = []
        for penalty in PENALTIES * scale:
            missed = 0.0
            for row in train:
                weight, offset = fit(train[train != row], penalty)
                missed += ((np.eye(3)[label_Q[row]] - x[row] @ weight - offset) ** 2).sum()
            errors.append(missed)
        weight, offset = fit(train, PENALTIES[int(np.argmin(errors))] * scale)
        told_Q[test] = (x[test] @ weight + offset).argmax(axis=1)
    np.testing.assert_array_equal(told_labels(x @ x.T, label_Q, fold_Q), told_Q)


@given(st.integers(2, 9), st.integers(1, 9), st.integers(0, 99))
def test_packing_fills_ranks_evenly(num_experts: int, num_ranks: int, seed: int) -> None:
    """Every rank gets its room; with two experts a rank the heaviest goes with the lightest, which is the optimum."""
    num_ranks = min(num_ranks, num_experts)
    load_E = np.random.default_rng(seed).exponential(size=num_experts)
    rank_E = pack_evenly(load_E, num_ranks)
    room = np.bincount(rank_E, minlength=num_ranks)
    assert room.max() - room.min() <= 1 and room.sum() == num_experts
    if num_experts == 2 * num_ranks:
        heaviest = np.sort(load_E)[::-1]
        pairs = heaviest[:num_ranks] + heaviest[::-1][:num_ranks]
        assert group_imbalance(load_E, rank_E, num_ranks) == pytest.approx(pairs.max() / pairs.mean())


@pytest.mark.parametrize(
    "options", [{"by": "size"}, {"num_nodes": 0}, {"num_nodes": 5, "gpus_per_node": 2}, {"seed": -1}]
)
def test_options_out_of_range_are_refused(small: Any, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        study_of(small, **options)
