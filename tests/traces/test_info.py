"""`describe` and the four statistics."""

from __future__ import annotations

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.analysis.info import StudyOptions, describe
from placement.analysis.info.measures import (
    coactivation_lift,
    domain_drift,
    load_cv,
    load_skew,
    overlap_chance,
    previous_rows,
)
from placement.core.model import Model
from placement.errors import TraceError
from placement.traces.format import RequestEntry
from placement.traces.trace import open_trace
from placement.traces.write import TokenPiece, new_folder, write_trace

MODEL = Model(name="tiny", layer_ids=(1, 3), num_experts=4, top_k=2)


def write(path: Path, ids_LTK: list, request: list, position: list, phase: list, entries: list[dict]) -> None:
    piece = TokenPiece(
        ids_LTK=np.array(ids_LTK, dtype=np.uint8),
        request_T=np.array(request),
        position_T=np.array(position),
        phase_T=np.array(phase),
    )
    with new_folder(path) as folder:
        write_trace(folder, iter([piece]), model=MODEL, requests=tuple(RequestEntry(**entry) for entry in entries))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    layer = [[0, 1], [1, 0], [2, 0], [2, 3], [2, 3]]
    entries = [{"id": "a", "domain": "x", "category": "c"}, {"id": "b", "domain": "y"}, {"id": "none"}]
    write(tmp_path / "t", [layer, layer], [0, 1, 0, 1, 1], [5, 0, 6, 1, 3], [1, 0, 1, 1, 1], entries)
    return tmp_path / "t"


def test_counts_shares_and_what_is_missing_are_those_of_a_trace_counted_by_hand(small: Path) -> None:
    info = describe(open_trace(small))
    assert (info.num_tokens, info.prefill_tokens, info.decode_tokens) == (5, 1, 4)
    assert (info.num_requests, info.listed_requests) == (2, 3)
    assert [(part.domain, part.requests, part.tokens, part.share) for part in info.domains] == [
        ("y", 1, 3, 0.6),
        ("x", 1, 2, 0.4),
    ]
    assert info.missing == (
        "no router weights",
        "no tokens of 1 of 3 requests",
        "no category for 1 of 2 requests",
        "1 gaps in the positions of requests: tokens between were not recorded",
        "no layer 2: dense, or not recorded",
    )


def test_overlap_compares_positions_of_a_request_even_where_requests_are_interleaved(small: Path) -> None:
    """a: {0,1} -> {2,0} shares 1 of 2; b: {1,0} -> {2,3} shares none; position 1 -> 3 is not consecutive."""
    layer = describe(open_trace(small)).layers[0]
    assert layer.overlap == pytest.approx(1 / 4)
    assert layer.overlap_chance == pytest.approx(((3 / 5) ** 2 + (2 / 5) ** 2 + (3 / 5) ** 2 + (2 / 5) ** 2) / 2)


def test_the_description_is_json_and_does_not_depend_on_the_executor(small: Path) -> None:
    alone = describe(open_trace(small)).as_dict()
    with ThreadPoolExecutor(3) as executor:
        assert describe(open_trace(small), executor).as_dict() == alone
    assert json.loads(json.dumps(alone))["layers"][0]["layer_id"] == 1


def test_requests_that_are_not_selected_are_not_described(small: Path) -> None:
    info = describe(open_trace(small).select(np.array([True, False, False])))
    assert (info.num_tokens, info.listed_requests, len(info.domains)) == (2, 1, 1)
    assert info.mean("domain_drift") is None


def test_ids_out_of_range_are_an_error_not_a_figure(tmp_path: Path) -> None:
    write(tmp_path / "t", [[[0, 9]], [[0, 1]]], [0], [0], [0], [{"id": "a"}])
    with pytest.raises(TraceError, match=r"\[0, 9\].*out of range"):
        describe(open_trace(tmp_path / "t"))


def test_skew_and_variation_of_known_loads() -> None:
    load_LE = np.array([[1, 1, 1, 1], [4, 0, 0, 0]])
    np.testing.assert_allclose(load_skew(load_LE), [1, 4])
    np.testing.assert_allclose(load_cv(load_LE), [0, np.sqrt(3)])


@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 2), (32, 4), (64, 8)])
def test_lift_of_independent_draws_of_uneven_loads_is_one(num_experts: int, top_k: int) -> None:
    generator = np.random.default_rng(0)
    logits_TE = generator.gumbel(size=(20_000, num_experts)) + np.linspace(-1.5, 1.5, num_experts)
    ids_TK = np.argsort(-logits_TE, axis=1)[:, :top_k]
    assert coactivation_lift(_coactivation(ids_TK, num_experts)[None]) == pytest.approx([1], abs=0.03)


def test_lift_of_experts_that_always_come_in_pairs_is_that_of_the_pair() -> None:
    """4 pairs drawn evenly: a pair is seen in 1 of 4 tokens; by chance in 1 of 28."""
    pair_T = np.random.default_rng(0).integers(4, size=50_000)
    ids_TK = np.stack([2 * pair_T, 2 * pair_T + 1], axis=1)
    assert coactivation_lift(_coactivation(ids_TK, 8)[None]) == pytest.approx([7], rel=0.01)


def test_lift_of_few_tokens_is_not_raised_by_counting_noise() -> None:
    """1,000 tokens see the average pair three times; the plain ratio of squares would be 1.34."""
    generator = np.random.default_rng(0)
    lifts = [
        coactivation_lift(_coactivation(np.argsort(generator.random((1000, 64)), axis=1)[:, :4], 64)[None])
        for _ in range(5)
    ]
    assert np.mean(lifts) == pytest.approx(1, abs=0.05)


def test_a_model_with_one_expert_per_token_has_no_lift() -> None:
    assert coactivation_lift(np.zeros((2, 4, 4), dtype=np.int64)) == [None, None]


def test_drift_of_disjoint_domains_and_its_chance_level() -> None:
    """Two domains that share no expert are each half a distribution away from the whole."""
    profile_QLE = np.zeros((40, 1, 4), dtype=np.uint32)
    profile_QLE[:20, 0, :2], profile_QLE[20:, 0, 2:] = 5, 5
    drift = domain_drift(profile_QLE, np.repeat([0, 1], 20))
    assert drift is not None
    assert drift[0] == pytest.approx(0.5)
    assert 0 < drift[1][0] < 0.2


def test_drift_of_domains_that_mean_nothing_is_its_chance_level() -> None:
    profile_QLE = np.random.default_rng(0).poisson(5, size=(300, 3, 16)).astype(np.uint32)
    drift = domain_drift(profile_QLE, np.arange(300) % 5)
    assert drift is not None
    np.testing.assert_allclose(drift[0], drift[1], rtol=0.25)


def test_drift_leaves_out_requests_without_domain_and_needs_two_domains() -> None:
    profile_QLE = np.ones((3, 1, 4), dtype=np.uint32)
    assert domain_drift(profile_QLE, np.array([0, 0, -1])) is None
    assert domain_drift(profile_QLE, np.array([-1, -1, -1])) is None


def test_even_loads_overlap_by_chance_in_k_of_e() -> None:
    assert overlap_chance(np.full((1, 32), 25), np.array([4.0])) == pytest.approx(4 / 32)


def test_repeated_and_skipped_positions_are_counted() -> None:
    previous_T, skips, repeats = previous_rows(
        np.array([0, 0, 0, 0, 1], np.int32), np.array([0, 1, 1, 4, 2], np.int32), np.zeros(5, np.uint8)
    )
    assert previous_T.tolist() == [-1, 0, -1, -1, -1]
    assert (skips, repeats) == (1, 1)


def _coactivation(ids_TK: np.ndarray, num_experts: int) -> np.ndarray:
    visits_TE = np.zeros((len(ids_TK), num_experts), dtype=np.int64)
    visits_TE[np.arange(len(ids_TK))[:, None], ids_TK] = 1
    coact_EE = visits_TE.T @ visits_TE
    np.fill_diagonal(coact_EE, 0)
    return coact_EE


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), tokens=st.integers(8, 40), share=st.sampled_from([0.0, 0.03, 0.4]))
def test_short_sets_are_told_as_they_are(seed: int, tokens: int, share: float, write_trace: Any) -> None:
    """Loads, overlap and its chance count the experts that sets have, not top-k of them."""
    with tempfile.TemporaryDirectory() as folder:
        written = write_trace(folder, tokens=tokens, seed=seed, requests=3, num_experts=6, top_k=3, short=share)
        info = describe(open_trace(folder), study=StudyOptions(num_nodes=2))
    places = (written.ids_LTK < 0).mean()
    assert (f"no expert in {places:.2%} of the places of top-3 sets" in info.missing) == (places > 0)
    for layer, ids_TK in enumerate(written.ids_LTK):
        sets = [set(row[row >= 0].tolist()) for row in ids_TK]
        load_E = np.array([sum(e in one for one in sets) for e in range(6)])
        assert info.layers[layer].load_skew == pytest.approx(load_E.max() / load_E.mean())
        follows = [t for t in range(1, tokens) if written.request_T[t] == written.request_T[t - 1]]
        shared, experts = sum(len(sets[t] & sets[t - 1]) for t in follows), sum(len(sets[t]) for t in follows)
        assert info.layers[layer].overlap == (pytest.approx(shared / experts) if experts else None)
        chance = (load_E / tokens) ** 2
        assert info.layers[layer].overlap_chance == pytest.approx(chance.sum() / (load_E.sum() / tokens))
