"""Homes before a request runs: features by a plain replay, what is learned, prices of load, sessions, and the file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.errors import InputError
from placement.grouping.features import GRAM_WEIGHTS, LABEL_WEIGHT, gram_counts, label_features, prompt_features
from placement.grouping.fit_predictor import Fitted, fit_predictor
from placement.grouping.predictor import MOST_BYTES, Predictor, buckets_for
from placement.grouping.prices import MOST_RECENT, Prices, Recent, rows_by_tokens
from placement.grouping.router import Router
from placement.grouping.router_kernels import scaled_to
from placement.grouping.router_part import PredictorPart, RouterPart
from placement.grouping.sessions import Sessions
from placement.traces.prompts import TokenLists

NODES, KINDS = 3, 3
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


def texts(seed: int, requests: int = 60) -> tuple[TokenLists, TokenLists, np.ndarray, np.ndarray]:
    """Prompts and answers of three kinds, each with words of its own among common ones, and what they save."""
    rng = np.random.default_rng(seed)
    kind_Q = np.arange(requests) % KINDS
    lists = []
    for low in (0, 1):
        parts = [
            np.concatenate([rng.integers(0, 20, 15), 100 * (kind + 1) + rng.integers(0, 30, 10)]) for kind in kind_Q
        ]
        lists.append(TokenLists.of(np.concatenate(parts).astype(np.int32), np.full(requests, 25 + 0 * low)))
    saved_QN = np.where(kind_Q[:, None] == np.arange(NODES), 0.4, -0.2) + rng.normal(0, 0.02, (requests, NODES))
    return *lists, saved_QN, kind_Q


def learned(seed: int = 0) -> tuple[Fitted, TokenLists, np.ndarray]:
    prompts, answers, saved_QN, kind_Q = texts(seed)
    tokens_Q = np.where(np.arange(len(kind_Q)) < 45, 50, 0)
    labels = [{"domain": f"kind {kind}"} for kind in kind_Q]
    fitted = fit_predictor(saved_QN, tokens_Q, prompts, answers, labels, seed=seed)
    assert fitted is not None
    return fitted.with_worth(0.5), prompts, kind_Q


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


@settings(deadline=None, max_examples=50)
@given(
    sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=80),
    nodes=st.integers(2, 6),
    tolerance=st.sampled_from([0.0, 0.02, 0.3]),
    ahead=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 10**6),
    ends=st.booleans(),
)
def test_no_node_is_beyond_the_tolerance_but_by_its_last_request(
    sizes: list[int], nodes: int, tolerance: float, ahead: float, seed: int, ends: bool
) -> None:
    """At every step, for any order of arrival and any sizes, whatever is foretold; also where requests end meanwhile.

    A node that gets a request had at most 1 + tolerance of the mean and `ahead`; what exceeds this is its own tokens.
    """
    rng = np.random.default_rng(seed)
    score_SN = rng.normal(0, 0.1, (20, nodes)).astype(np.float32)
    mean = float(np.mean(sizes))
    given: dict[str, Any] = {
        "request_tokens": mean,
        "horizon": 3.0,
        "tolerance": tolerance,
        "ahead_tokens": ahead * mean,
    }
    prices = Prices(score_SN=score_SN, **given)
    router = Router(
        num_layers=1,
        top_k=1,
        layers=(0,),
        saved_MEN=np.zeros((1, 2, nodes), np.float32),
        band=0.0,
        slack_tokens=0.0,
        prices=prices,
    )
    load_N, last_N, running = np.zeros(nodes), np.zeros(nodes), []
    for size in sizes:
        node = router.choose(rng.choice([0.0, 1.0]) * rng.random(nodes), load_N)
        assert load_N[node] <= max(load_N.mean() * (1 + tolerance) + ahead * mean, load_N.min())
        load_N[node] += size
        last_N[node] = size
        running.append((node, size))
        if not ends:
            assert (load_N - last_N <= (load_N.mean() * (1 + tolerance) + ahead * mean) * (1 + 1e-12)).all()
        elif rng.random() < 0.4:
            node, size = running.pop(rng.integers(len(running)))
            load_N[node] -= size


@settings(deadline=None)
@given(
    load=st.lists(st.floats(0, 1e6), min_size=NODES, max_size=NODES),
    saved=st.lists(st.floats(-1, 1), min_size=NODES, max_size=NODES),
    seed=st.integers(0, 50),
    tolerance=st.floats(0, 0.5),
    ahead=st.floats(0, 200),
)
def test_no_node_that_is_too_far_ahead_gets_a_request(
    load: list[float], saved: list[float], seed: int, tolerance: float, ahead: float
) -> None:
    """Whatever is foretold, for any loads; and the price of a node does not fall when its load grows."""
    score_SN = np.random.default_rng(seed).normal(0, 0.1, (20, NODES)).astype(np.float32)
    given: dict[str, Any] = {"request_tokens": 100.0, "horizon": 10.0, "tolerance": tolerance, "ahead_tokens": ahead}
    prices = Prices(score_SN=score_SN, **given)
    load_N = np.array(load)
    node = prices.best(np.array(saved), load_N)
    assert load_N[node] <= load_N.mean() * (1 + tolerance) + ahead or load_N[node] == load_N.min()
    dearer_N = prices.of(load_N + 50.0 * (np.arange(NODES) == 0)) - prices.of(load_N)
    assert dearer_N[0] - dearer_N.min() >= -1e-6


@pytest.mark.parametrize("seed", range(3))
def test_prices_even_out_a_node_that_everybody_wants(seed: int) -> None:
    """All requests save most on node 0: without prices it gets them all; with them the loads stay together."""
    rng = np.random.default_rng(seed)
    score_SN = rng.normal(0, 0.05, (64, NODES)) + np.array([0.3, 0, 0])
    prices = Prices(score_SN=score_SN.astype(np.float32), request_tokens=10.0, horizon=10.0, tolerance=1e9)
    load_N = np.zeros(NODES)
    for _ in range(300):
        load_N[prices.best(score_SN[rng.integers(64)], load_N)] += 10
    assert load_N.max() / load_N.mean() < 1.1


def test_prices_follow_the_requests_that_come() -> None:
    """Training had requests of all nodes alike; those that come all want node 0. Prices of training let it run ahead,
    those of the requests before do not; and of each router's own requests alone."""
    rng = np.random.default_rng(3)
    score_SN = rng.normal(0, 0.1, (256, NODES))
    prices = Prices(score_SN=score_SN.astype(np.float32), request_tokens=10.0, horizon=10.0, tolerance=1e9)

    def ahead(recent: Recent | None) -> float:
        load_N = np.zeros(NODES)
        for _ in range(300):
            saved_N = rng.normal(0, 0.1, NODES) + np.array([0.3, 0, 0])
            load_N[prices.best(saved_N, load_N, recent)] += 10
            if recent is not None:
                recent.add(saved_N)
        return float((load_N.max() - load_N.mean()) / 10)

    follows, other = Recent(prices), Recent(prices)
    assert ahead(follows) < 0.6 * ahead(None)
    even_N = np.zeros(NODES)
    assert prices.of(even_N, follows).argmax() == 0
    assert np.ptp(prices.of(even_N, other)) < 0.5 * np.ptp(prices.of(even_N, follows))


@pytest.mark.parametrize("trained", [1, 100, 256])
def test_the_oldest_requests_make_room(trained: int) -> None:
    """After many requests those of training are forgotten, and then the first that came."""
    rng = np.random.default_rng(trained)
    prices = Prices(score_SN=rng.normal(size=(trained, NODES)).astype(np.float32), request_tokens=1.0, horizon=3.0)
    recent = Recent(prices)
    assert recent.requests == min(trained, 64)
    saved_XN = rng.normal(size=(700, NODES))
    for saved_N in saved_XN:
        recent.add(saved_N)
    assert recent.requests == MOST_RECENT
    want = {tuple(row) for row in prices.nearness(saved_XN[-MOST_RECENT:]).tolist()}
    assert {tuple(row) for row in recent.near_NS.T.tolist()} == want


@given(tokens=st.lists(st.integers(0, 5000), min_size=1, max_size=400).filter(any), most=st.integers(1, 256))
def test_past_requests_stand_for_the_next_by_their_tokens(tokens: list[int], most: int) -> None:
    """As often as their share of the tokens says, up to one; a request without tokens stands for none."""
    rows = rows_by_tokens(np.array(tokens), most)
    often_S = np.bincount(rows, minlength=len(tokens))
    assert len(often_S) == len(tokens) and len(rows) == most
    assert (np.abs(often_S - np.array(tokens) * most / sum(tokens)) < 1 + 1e-9).all()
    assert not often_S[np.array(tokens) == 0].any()


def make_router(**more: Any) -> Router:
    fitted, _, _ = learned()
    saved_MEN = np.random.default_rng(5).uniform(0, 1, (2, 6, NODES)).astype(np.float32)
    prices = Prices(score_SN=fitted.score_SN.astype(np.float32), request_tokens=50.0, horizon=10.0, tolerance=1e9)
    given: dict[str, Any] = {"prices": prices, "predictor": fitted.predictor, "prefix_sends": 2.0} | more
    return Router(num_layers=4, top_k=2, layers=(1, 3), saved_MEN=saved_MEN, band=0.01, slack_tokens=9.0, **given)


def test_the_router_says_what_a_home_was_told_from() -> None:
    router, (_, prompts, kind_Q) = make_router(), learned()
    prompt, counts = prompts.list_of(50), np.full((4, 6), 5)
    even = np.zeros(NODES)
    assert router.assign(load=[5, 1, 3]).why == "load"
    assert router.assign(load=[5, 1, 3]).node == 1
    told = router.assign(prompt=prompt, load=even)
    assert (told.why, told.node) == ("prompt", kind_Q[50])
    assert told.extra_N[told.node] == 0
    assert router.assign(labels={"domain": "kind 1"}).why == "labels"
    assert router.assign(counts, even, prompt=prompt, labels={"domain": "kind 1"}).why == "prompt+labels+counts"
    assert make_router(predictor=None).assign(prompt=prompt, load=even).why == "load"


def test_more_counts_weigh_more_than_the_prompt() -> None:
    """A few tokens that say otherwise do not turn what the prompt says; very many do."""
    router, (_, prompts, kind_Q) = make_router(), learned()
    saved_MEN = np.zeros((2, 6, NODES), dtype=np.float32)
    other = (int(kind_Q[50]) + 1) % NODES
    saved_MEN[:, 0, other] = 0.2
    router = Router(
        num_layers=4,
        top_k=1,
        layers=(1, 3),
        saved_MEN=saved_MEN,
        band=0.01,
        slack_tokens=9.0,
        predictor=router.predictor,
    )
    counts = np.zeros((4, 6))
    counts[:, 0] = 1
    assert router.assign(counts, prompt=prompts.list_of(50)).node == kind_Q[50]
    assert router.assign(counts * 1e5, prompt=prompts.list_of(50)).node == other


def test_a_conversation_stays_where_its_keys_and_values_are() -> None:
    router, (_, prompts, kind_Q) = make_router(), learned()
    sessions, prompt = Sessions(NODES, most=2), prompts.list_of(50)
    other = (int(kind_Q[50]) + 1) % NODES
    sessions.keep("chat", other, 10_000)
    home = router.assign(prompt=prompt, cached=sessions.cached("chat"), load=np.zeros(NODES))
    assert (home.node, home.why) == (other, "prompt+prefix")
    assert router.assign(prompt=prompt, cached=sessions.cached("unknown")).node == kind_Q[50]
    assert router.assign(cached=sessions.cached("chat")).why == "prefix"
    sessions.keep("two", 0, 1)
    sessions.keep("three", 0, 1)
    assert not sessions.cached("chat").any()
    assert sessions.cached("three").tolist() == [1, 0, 0]


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


@pytest.mark.parametrize("cached", [[1, 2], "abc", [1, float("nan"), 0]])
def test_bad_cached(cached: object) -> None:
    with pytest.raises(InputError, match="cached has shape"):
        make_router().assign(cached=cached)  # type: ignore[arg-type]


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


@given(seed=st.integers(0, 999))
def test_prices_are_those_of_a_plain_replay(seed: int) -> None:
    """Sinkhorn's scaling, written with arrays."""
    rng = np.random.default_rng(seed)
    score_SN = rng.normal(size=(rng.integers(1, 9), 3)).astype(np.float32)
    prices = Prices(score_SN=score_SN, request_tokens=10.0, horizon=4.0, ahead_tokens=5.0)
    share_N = rng.dirichlet(np.ones(3))
    scale_N = np.ones(3)
    for _ in range(5):
        got_N = ((prices._near_NS.T * scale_N) / (scale_N @ prices._near_NS)[:, None]).mean(axis=0)
        scale_N *= share_N / got_N
        scale_N /= scale_N.max()
    assert scaled_to(prices._near_NS, len(score_SN), share_N, 5) == pytest.approx(scale_N, rel=1e-9)
