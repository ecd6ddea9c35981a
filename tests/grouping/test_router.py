"""The online router: deterministic, safe to share, and right about what it was told."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement import Cluster, Placement, count, open_trace
from placement.errors import InputError, OptionError
from placement.grouping import Router
from placement.grouping.fit_router import fit_router
from placement.grouping.held_out import extra_of_requests, foretold_of, observed_of, route_requests
from placement.grouping.home_costs import home_costs
from placement.grouping.requests import requests_of
from placement.grouping.router_part import RouterPart

NODES, EXPERTS, LAYERS = 3, 6, 4


def make_router(seed: int = 0, band: float = 0.0, slack: float = 100.0, layers: tuple[int, ...] = (1, 3)) -> Router:
    saved = np.random.default_rng(seed).uniform(0, 1, (len(layers), EXPERTS, NODES)).astype(np.float32)
    return Router(num_layers=LAYERS, top_k=2, layers=layers, saved_MEN=saved, band=band, slack_tokens=slack)


def counts(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 9, (LAYERS, EXPERTS))


@given(seed=st.integers(0, 1000))
def test_the_best_node_by_hand(seed: int) -> None:
    """Without load it is the node where the chosen layers' assignments save most; other layers do not count."""
    router, asked = make_router(seed), counts(seed)
    saved_N = [
        sum(
            int(asked[layer, e]) * float(router.saved_MEN[m, e, n])
            for m, layer in enumerate((1, 3))
            for e in range(EXPERTS)
        )
        for n in range(NODES)
    ]
    assert saved_N[router.assign(asked).node] == pytest.approx(max(saved_N), rel=1e-5)
    other = asked.copy()
    other[0] = 99
    assert router.assign(other).node == router.assign(asked).node


@given(seed=st.integers(0, 1000), band=st.sampled_from([0.0, 0.05, 10.0]), slack=st.sampled_from([0.0, 50.0, 1e9]))
def test_load_decides_within_the_band(seed: int, band: float, slack: float) -> None:
    """Never a node ahead by more than the slack; of the others, the least loaded of those near the best."""
    router, asked = make_router(seed, band, slack), counts(seed)
    load = np.random.default_rng(seed + 1).integers(0, 120, NODES).astype(float)
    extra_N = router.extra_sends(asked)
    free = [n for n in range(NODES) if load[n] <= load.min() + slack]
    near = [n for n in free if extra_N[n] <= min(extra_N[m] for m in free) + band]
    node = router.assign(asked, load).node
    assert node in near
    assert load[node] == min(load[n] for n in near)


def test_extra_sends_are_per_token_and_layer(tmp_path: Path, write_trace: Any) -> None:
    """By the counts of requests whose sets are short: what the best home saves is that of the tokens, exactly."""
    written = write_trace(tmp_path / "t", num_experts=8, top_k=3, tokens=400, requests=1, short=0.4)
    trace = open_trace(written.folder)
    cluster = Cluster(num_nodes=4, gpus_per_node=1, slots_per_gpu=2)
    rows = np.stack([np.random.default_rng(n).permutation(8) for n in range(2)])
    placement = Placement(model=trace.model, num_nodes=4, gpus_per_node=1, slots_per_gpu=2, phy2log_LP=rows)
    costs = home_costs(trace, requests_of(trace), placement, cluster)
    router, _ = fit_router(costs, count(trace), cluster)
    assert router.top_k == pytest.approx((written.ids_LTK[list(router.layers)] >= 0).sum() / 400 / len(router.layers))
    extra_N = router.extra_sends(costs.load_LE)
    saved_N = costs.cost_LQN[list(router.layers)].sum(axis=(0, 1))
    assert extra_N == pytest.approx((saved_N - saved_N.min()) / 400 / len(router.layers), abs=1e-3)
    again = RouterPart.model_validate_json(RouterPart.of(router, keeps=1.0).model_dump_json()).router()
    assert (again.top_k, again.extra_sends(costs.load_LE).tolist()) == (router.top_k, extra_N.tolist())
    foretold = foretold_of(router, requests_of(trace), np.ones(1, dtype=bool))
    extra_QN = extra_of_requests(foretold, observed_of(router, requests_of(trace), trace))
    homes_Q = route_requests(router, extra_QN, trace.tokens_Q(), seed=0)
    assert homes_Q.tolist() == [router.assign(costs.load_LE, np.zeros(4)).node]


def test_nothing_known_goes_to_the_least_loaded() -> None:
    """A request without tokens has no favourite node."""
    assert make_router().assign(np.zeros((LAYERS, EXPERTS)), [5, 1, 3]).node == 1
    assert make_router().assign(np.zeros((LAYERS, EXPERTS))).node == 0


def test_threads_share_a_router() -> None:
    """The same questions from many threads at once get the same answers as one after the other."""
    router = make_router(3)
    asked = [counts(seed) for seed in range(400)]
    loads = [np.random.default_rng(seed).integers(0, 300, NODES) for seed in range(400)]
    want = [router.assign(one, load).node for one, load in zip(asked, loads, strict=True)]
    with ThreadPoolExecutor(8) as pool:
        assert [home.node for home in pool.map(router.assign, asked, loads)] == want


@given(seed=st.integers(0, 500), batch=st.integers(0, 13), size=st.integers(1, 5))
def test_groups_are_full_and_share_the_nodes(seed: int, batch: int, size: int) -> None:
    """Every request is in one group; all groups but at most one are full; nodes differ by at most one group."""
    groups = make_router(seed).group([counts(seed + 7 * q) for q in range(batch)], size)
    assert sorted(member for group in groups for member in group.members) == list(range(batch))
    assert sorted(len(group.members) for group in groups)[1:] == [size] * (len(groups) - 1)
    assert len(groups) == -(-batch // size)
    by_node = np.bincount(np.array([group.node for group in groups], dtype=int), minlength=NODES)
    assert by_node.max() - by_node.min() <= 1


@given(seed=st.integers(0, 300))
def test_groups_send_the_least(seed: int) -> None:
    """One group a node: no other way to share the batch out sends less."""
    router = make_router(seed)
    batch = [counts(seed + 11 * q) for q in range(NODES)]
    extra = np.stack([router.extra_sends(one) for one in batch])
    groups = router.group(batch, 1)
    cost = sum(extra[group.members[0], group.node] for group in groups)
    best = min(sum(extra[q, n] for q, n in enumerate(order)) for order in permutations(range(NODES)))
    assert cost == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (np.zeros((2, EXPERTS)), r"counts have shape \[2, 6\]; 4 layers of 6 experts"),
        (np.full((LAYERS, EXPERTS), -1), "negative"),
        (np.full((LAYERS, EXPERTS), np.nan), "not finite"),
        (np.full((LAYERS, EXPERTS), 1e308), "not finite"),
        ("abc", "shape"),
    ],
)
def test_bad_counts(asked: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make_router().assign(asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("load", [[1, 2], [1, 2, float("nan")], [[1, 2, 3]], [5, 1, -1]])
def test_bad_load(load: list[float]) -> None:
    with pytest.raises(InputError, match="one finite number for each of 3 nodes"):
        make_router().assign(counts(0), load)


def test_bad_size() -> None:
    with pytest.raises(OptionError, match="size=0"):
        make_router().group([counts(0)], 0)


@pytest.mark.parametrize("layers", [(), (1, 1), (3, 1), (0, 4), (-1, 2)])
def test_bad_layers(layers: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="layers"):
        make_router(layers=layers)
