"""Homes before a request runs: features by a plain replay, what is learned of them, and the file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted_prompts import NODES, learned, make_router, texts

from placement.errors import InputError
from placement.grouping.features import GRAM_WEIGHTS, LABEL_WEIGHT, gram_counts, label_features, prompt_features
from placement.grouping.fit_predictor import fit_predictor
from placement.grouping.predictor import MOST_BYTES, Predictor, buckets_for
from placement.grouping.router_part import PredictorPart, RouterPart

WORD = 2**64


def mixed(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % WORD
    return x ^ (x >> 31)


@given(prompt=st.lists(st.integers(0, 2**31 - 1), max_size=12), seed=st.integers(0, 99), buckets=st.integers(60, 64))
def test_features_are_those_of_a_plain_replay(prompt: list[int], seed: int, buckets: int) -> None:
    """Words mixed one by one; each length of n-grams has the norm of its weight, or nothing."""
    idf_F = np.random.default_rng(seed).uniform(0, 2, buckets)
    want = np.zeros(buckets)
    for size, weight in enumerate(GRAM_WEIGHTS, 1):
        count = np.zeros(buckets)
        for first in range(len(prompt) - size + 1):
            word = size
            for token in prompt[first : first + size]:
                word = mixed((word * 0x9E3779B97F4A7C15 + token) % WORD)
            count[word % buckets] += 1
        value = np.log1p(count) * idf_F
        want += weight * value / max(np.linalg.norm(value), 1e-300)
    found = np.zeros(buckets)
    np.add.at(found, *prompt_features(np.array(prompt, dtype=np.int64), idf_F))
    assert found == pytest.approx(want)


def test_a_bucket_counts_to_a_bound_and_no_further() -> None:
    """A word repeated more often than a small number can hold is no word that never came."""
    idf_F = np.ones(8)
    most = prompt_features(np.zeros(70_000, dtype=np.int64), idf_F)
    assert most[1].tolist() == pytest.approx(list(GRAM_WEIGHTS))  # a bucket each, with the norm of its weight
    mixed_in = prompt_features(np.append(np.zeros(70_000, dtype=np.int64), 1), idf_F)
    first = mixed_in[1][:2]
    assert first[0] / first[1] == pytest.approx(np.log1p(65_535) / np.log1p(1))


@pytest.mark.parametrize("seed", range(3))
def test_planted_kinds_are_told_from_prompts_and_from_labels(seed: int) -> None:
    """Requests that were not fitted: the node of their kind is foretold from either, and from both."""
    fitted, prompts, kind_Q = learned(seed)
    assert fitted.prompt_error < 0.5 * fitted.variance
    assert fitted.labels_error < 0.5 * fitted.variance
    for q in range(45, 60):
        labels = {"domain": f"kind {kind_Q[q]}"}
        for known in ((prompts.list_of(q), None), (None, labels), (prompts.list_of(q), labels)):
            assert fitted.predictor.saved(*known).argmax() == kind_Q[q]
    nothing = fitted.predictor.saved()
    assert nothing.tolist() == fitted.predictor.mean_N.tolist()
    worth = fitted.predictor
    assert min(worth.worth_tokens, worth.labels_worth_tokens) > worth.least_worth_tokens > 0


def test_the_same_texts_give_the_same_tables() -> None:
    one, two = learned()[0].predictor, learned()[0].predictor
    assert one.weight_NF.tobytes() == two.weight_NF.tobytes()


def test_too_few_prompts_teach_nothing() -> None:
    prompts, answers, saved_QN, _ = texts(0, requests=7)
    assert fit_predictor(saved_QN, np.full(7, 9), prompts, answers, [{}] * 7, seed=0) is None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("prompted", [0, 20])
def test_labels_teach_where_prompts_are_lacking(seed: int, prompted: int) -> None:
    """Of all requests, or of all but the first few; a request of which nothing is known teaches nothing."""
    prompts, answers, saved_QN, kind_Q = texts(seed)
    known_Q = np.arange(len(kind_Q)) < prompted
    some, none = (lists.take(np.where(known_Q, np.arange(len(kind_Q)), -1)) for lists in (prompts, answers))
    labels = [{"domain": f"kind {kind}"} for kind in kind_Q]
    tokens_Q = np.where(np.arange(len(kind_Q)) < 45, 50, 0)
    fitted = fit_predictor(saved_QN, tokens_Q, some, none, labels, seed=seed)
    assert fitted is not None and len(fitted.score_SN) == 45
    predictor = fitted.with_worth(0.5).predictor
    for q in range(45, 60):
        assert predictor.saved(None, labels[q]).argmax() == kind_Q[q]
    assert predictor.labels_worth_tokens > predictor.least_worth_tokens
    if not prompted:  # nothing was learned from prompts: a prompt is worth what every request is
        assert predictor.worth_tokens == predictor.least_worth_tokens
        assert predictor.saved(prompts.list_of(50)).tolist() == predictor.mean_N.tolist()
    assert fit_predictor(saved_QN, tokens_Q, none.take(np.full(60, -1)), none, [{}] * 60, seed=seed) is None


def test_the_file_keeps_the_router() -> None:
    router, (_, prompts, _) = make_router(), learned()
    again = RouterPart.model_validate_json(RouterPart.of(router, keeps=1.0).model_dump_json()).router()
    for q in range(45, 60):
        one, two = (each.assign(prompt=prompts.list_of(q), load=[3, 1, 2]) for each in (router, again))
        assert (one.node, one.why) == (two.node, two.why)
        assert one.extra_N.tolist() == two.extra_N.tolist()


@pytest.mark.parametrize("nodes", [2, 4, 8, 32, 64])
def test_tables_take_less_than_two_megabytes(nodes: int) -> None:
    """Even where no number repeats, so that nothing is packed."""
    buckets = buckets_for(nodes)
    rng = np.random.default_rng(0)
    predictor = Predictor(
        idf_F=rng.random(buckets).astype(np.float16),
        weight_NF=rng.random((nodes, buckets)).astype(np.float16),
        mean_N=np.zeros(nodes),
        worth_tokens=1.0,
        labels_worth_tokens=1.0,
        least_worth_tokens=1.0,
    )
    assert predictor.idf_F.nbytes + predictor.weight_NF.nbytes <= MOST_BYTES
    assert len(PredictorPart.of(predictor).model_dump_json()) < 2_000_000


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tables": "%%%"}, "cannot be unpacked"),
        ({"tables": "AAAA"}, "cannot be unpacked"),
        ({"buckets": 512}, "bytes long"),
        ({"mean": [0.0]}, "bytes long"),
        ({"worth_tokens": -1.0}, "worth_tokens"),
        ({"mean": [float("nan")] * NODES}, "finite"),
    ],
)
def test_a_damaged_predictor_is_refused(change: dict[str, Any], told: str) -> None:
    part = PredictorPart.of(learned()[0].predictor)
    with pytest.raises(InputError, match=told):
        part.model_copy(update=change).predictor()


@pytest.mark.parametrize("prompt", ["text", [1.5], [-1], [[1], [2]], [2**31], [[1], [2, 3]]])
def test_a_prompt_that_is_no_list_of_ids_is_refused(prompt: object) -> None:
    with pytest.raises(InputError, match="ids of its tokens"):
        make_router().assign(prompt=prompt)


def test_labels_fill_the_same_buckets_in_any_order() -> None:
    one, two = label_features({"a": "1", "b": "2"}, 1024), label_features({"b": "2", "a": "1"}, 1024)
    assert one[0].tolist() == two[0].tolist()
    assert one[1].tolist() == [LABEL_WEIGHT] * 2


@pytest.mark.parametrize("buckets", [64, 60])
@given(prompt=st.lists(st.integers(0, 40), max_size=400), seed=st.integers(0, 99))
def test_long_prompts_are_told_as_by_a_sum_over_their_features(prompt: list[int], seed: int, buckets: int) -> None:
    """Repeated n-grams, buckets that collide, counts beyond the table of logarithms; also all buckets in use."""
    rng = np.random.default_rng(seed)
    predictor = Predictor(
        idf_F=rng.uniform(0, 2, buckets).astype(np.float16),
        weight_NF=rng.normal(size=(3, buckets)).astype(np.float16),
        mean_N=rng.normal(size=3),
        worth_tokens=1.0,
        least_worth_tokens=1.0,
    )
    want_N = predictor.mean_N.copy()
    for (column, count, weight), size in zip(gram_counts(np.array(prompt), buckets), (1, 2, 3), strict=True):
        value = np.log1p(count) * predictor.idf_F[column].astype(float)
        norm = np.linalg.norm(value)
        want_N += predictor.weight_NF[:, column].astype(float) @ value * (weight / norm if norm else 0.0)
        assert count.sum() == max(len(prompt) - size + 1, 0)
    assert predictor.saved(prompt) == pytest.approx(want_N)
