"""The books of the search with copies say what moves change, for every number of nodes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.core.cluster import Cluster
from placement.cost import node_families
from placement.cost.covers import EXACT_NODES
from placement.solvers.annealing import reaches
from placement.solvers.annealing.anneal_common import Floats, Ids, incidence
from placement.solvers.annealing.copy_books import (
    Books,
    book_sets,
    books_of,
    change_of_both,
    change_of_sends,
    measure,
    shares_of_load,
    update_expert,
)
from placement.support.kernel import kernel
from placement.testing.problems import random_problem

EXPERTS = 9


@kernel
def book(books: Books, host_E: Ids) -> None:
    """Book all sets with experts on these nodes."""
    for e in range(host_E.shape[0]):
        books.host_E[e] = np.uint64(host_E[e])
    book_sets(books)


@kernel
def move(e: int, host: int, share_N: Floats, books: Books) -> int:
    """Move an expert; returns what the books say of the sends before the move."""
    shares_of_load(e, np.uint64(host), share_N, books)
    change = change_of_sends(e, books.host_E[e], np.uint64(host), books.asked)
    books.host_E[e] = np.uint64(host)
    update_expert(e, books)
    return change


@kernel
def both(u: int, host_u: int, v: int, host_v: int, books: Books) -> int:
    """What the books say of the sends if both move."""
    change = change_of_sends(u, books.host_E[u], np.uint64(host_u), books.asked)
    change += change_of_sends(v, books.host_E[v], np.uint64(host_v), books.asked)
    return change + change_of_both(u, np.uint64(host_u), v, np.uint64(host_v), books)


@kernel
def measured(share_EN: Floats, books: Books) -> float:
    return measure(share_EN, books)


@settings(max_examples=80, deadline=None)
@given(
    data=st.data(),
    num_nodes=st.integers(2, EXACT_NODES),
    seed=st.integers(0, 1000),
    homes=st.sampled_from(["random", "known", "some known"]),
    lacking=st.sampled_from([0.0, 0.3]),
)
def test_books_after_moves_are_those_of_the_new_map(
    data: st.DataObject, num_nodes: int, seed: int, homes: str, lacking: float
) -> None:
    """Of moves of one expert and of two, changes of sends are exact, and updated books equal books made anew."""
    rng = np.random.default_rng(seed)
    cluster = Cluster(num_nodes=num_nodes, gpus_per_node=1, slots_per_gpu=EXPERTS)
    problem = random_problem(EXPERTS, 5, cluster, num_tokens=60, seed=seed, lacking=lacking)
    if homes != "random":
        home_U = rng.integers(0 if homes == "known" else -1, num_nodes, len(problem.sets_UK)).astype(np.int32)
        problem = replace(problem, home_U=home_U)
    inc = incidence(problem, EXPERTS)
    hosts = st.integers(1, (1 << num_nodes) - 1)
    host_E = np.array([*data.draw(st.lists(hosts, min_size=EXPERTS, max_size=EXPERTS)), 0], dtype=np.int32)
    books = books_of(EXPERTS + 1, num_nodes, inc)
    book(books, host_E)
    share_EN, share_N = np.zeros((EXPERTS + 1, num_nodes)), np.zeros(num_nodes)
    sends = measured(share_EN, books)
    for u, v, host_u, host_v in data.draw(
        st.lists(st.tuples(*[st.integers(0, EXPERTS - 1)] * 2, hosts, hosts), min_size=1, max_size=6)
    ):
        if u != v:
            foretold = both(u, host_u, v, host_v, books)
            assert move(u, host_u, share_N, books) + move(v, host_v, share_N, books) == foretold
            sends += foretold
            host_E[u], host_E[v] = host_u, host_v
        else:
            sends += move(u, host_u, share_N, books)
            host_E[u] = host_u
    fresh = books_of(EXPERTS + 1, num_nodes, inc)
    book(fresh, host_E)
    assert measured(share_EN, books) == sends
    np.testing.assert_array_equal(books.asked.hist_EZ, fresh.asked.hist_EZ)
    np.testing.assert_array_equal(books.rest_UK, fresh.rest_UK)


@settings(max_examples=60, deadline=None)
@given(num_nodes=st.sampled_from([2, 4, 5, 8, 9, 20]), seed=st.integers(0, 1000), known=st.booleans())
def test_shares_of_load_are_shares(num_nodes: int, seed: int, known: bool) -> None:
    """A moved expert's load is served on its nodes alone, whole; up to 4 nodes, as the exact measure says."""
    rng = np.random.default_rng(seed)
    cluster = Cluster(num_nodes=num_nodes, gpus_per_node=1, slots_per_gpu=EXPERTS)
    problem = random_problem(EXPERTS, 4, cluster, num_tokens=60, seed=seed)
    if known:
        problem = replace(problem, home_U=rng.integers(-1, num_nodes, len(problem.sets_UK)).astype(np.int32))
    host_E = np.append(rng.integers(1, 1 << num_nodes, EXPERTS), 0).astype(np.int32)
    books = books_of(EXPERTS + 1, num_nodes, incidence(problem, EXPERTS))
    book(books, host_E)
    share_EN, share_N = np.zeros((EXPERTS + 1, num_nodes)), np.zeros(num_nodes)
    host = int(rng.integers(1, 1 << num_nodes))
    move(3, host, share_N, books)
    measured(share_EN, books)
    assert abs(share_N.sum() - 1) < 1e-9
    assert (share_N[[n for n in range(num_nodes) if not host >> n & 1]] == 0).all()
    if num_nodes <= node_families.MOST_NODES:
        np.testing.assert_allclose(share_N, share_EN[3], atol=1e-12)


@settings(max_examples=150)
@given(
    num_nodes=st.integers(1, reaches.MOST_NODES),
    forced=st.integers(0, 255),
    masks=st.lists(st.integers(1, 255), max_size=6),
)
def test_a_reach_is_the_home_and_all_smallest_covers(num_nodes: int, forced: int, masks: list[int]) -> None:
    """The bytes of a reach are found by trying all covers of all homes."""
    every = (1 << num_nodes) - 1
    forced &= every
    masks = [mask & every for mask in masks if mask & every and not mask & forced]
    open_K = np.array([*masks, 0], dtype=np.uint64)
    tables = reaches.reaches_of(num_nodes)
    reach = int(reach_of(np.uint64(forced), open_K, len(masks), tables))
    for home in range(num_nodes):
        covers = [
            s for s in range(1 << num_nodes) if s & forced == forced and s >> home & 1 and all(s & m for m in masks)
        ]
        least = min(s.bit_count() for s in covers)
        want = 0
        for cover in covers:
            want |= cover if cover.bit_count() == least else 0
        assert reach >> 8 * home & 255 == want


@kernel
def reach_of(forced: np.uint64, open_K: np.ndarray, num_open: int, tables: reaches.Reaches) -> np.uint64:  # type: ignore[type-arg]
    return reaches.reach_of(forced, open_K, num_open, tables.homes_M, tables.meets_MW, tables.holds_NW, tables.sized_CW)


@settings(max_examples=60)
@given(
    num_nodes=st.integers(1, node_families.MOST_NODES),
    masks=st.lists(st.integers(1, 15), min_size=1, max_size=6),
    known=st.none() | st.integers(0, 3),
)
def test_a_state_says_what_a_set_sends_and_serves(num_nodes: int, masks: list[int], known: int | None) -> None:
    """Tables of families give the sends and shares of a set under `min-nodes`, by trying all covers of all homes."""
    masks = [mask % (1 << num_nodes) or 1 for mask in masks]
    tables = node_families.families_of(num_nodes, random_homes=False)
    word = tables.everyone
    for mask in masks[1:]:
        word &= int(tables.word_M[mask])
    block = 0 if known is None else 1 + known % num_nodes
    column = block * tables.width + int(tables.state_W[word])
    homes = range(num_nodes) if known is None else [known % num_nodes] * num_nodes
    sends, served_N = 0, np.zeros(num_nodes)
    for home in homes:
        sets = [s | 1 << home for s in range(1 << num_nodes)]
        covers = {s for s in sets if all(s & mask for mask in masks)}
        least = min(s.bit_count() for s in covers)
        smallest = [s for s in covers if s.bit_count() == least]
        sends += least - 1
        for cover in smallest:
            nodes = [home] if masks[0] >> home & 1 else [n for n in range(num_nodes) if cover & masks[0] & 1 << n]
            served_N[nodes] += 1 / len(nodes) / len(smallest)
    assert tables.after_MY[masks[0], column] == sends
    np.testing.assert_allclose(tables.share_MNY[masks[0], :, column] / tables.unit, served_N, atol=1e-12)
