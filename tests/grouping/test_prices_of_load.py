"""Prices of load keep nodes even, and a conversation stays where its keys and values are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_prompts import NODES, learned, make_router

from placement.errors import InputError
from placement.grouping.prices import MOST_RECENT, Prices, Recent, rows_by_tokens
from placement.grouping.router import Router
from placement.grouping.router_kernels import scaled_to
from placement.grouping.sessions import Sessions


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


@pytest.mark.parametrize("cached", [[1, 2], "abc", [1, float("nan"), 0]])
def test_bad_cached(cached: object) -> None:
    with pytest.raises(InputError, match="cached has shape"):
        make_router().assign(cached=cached)  # type: ignore[arg-type]


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
