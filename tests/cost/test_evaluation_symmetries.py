"""What the definition of the evaluation implies: figures that are equal, and figures that are ordered."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_cases import CHOICES, RELAXED, Case, cases, figures, measure, sound_row, uneven
from hypothesis import given, settings
from hypothesis import strategies as st

from placement import Model, Placement, evaluate, open_trace
from placement.cost.transports import TRANSPORTS
from placement.testing.problems import short_sets


@settings(RELAXED, max_examples=60)
@given(case=cases())
def test_sends_are_ordered(case: Case, write_trace: Any) -> None:
    """A node holds ranks and a rank serves assignments: node sends <= rank sends <= remote assignments <= K."""
    (answer,) = measure(case, write_trace)
    assert (answer.node_sends_L >= 0).all()
    assert (answer.node_sends_L <= answer.rank_sends_L + 1e-12).all()
    assert (answer.rank_sends_L <= answer.remote_assignments_L + 1e-12).all()
    assert (answer.remote_assignments_L <= answer.assignments_L + 1e-12).all()
    assert (answer.assignments_L <= case.ids_LTK.shape[2]).all()
    np.testing.assert_allclose(answer.load_LP.sum(axis=1), answer.num_tokens * answer.assignments_L, atol=1e-9)


@settings(RELAXED, max_examples=30)
@given(case=cases(redundant=False))
def test_one_copy_leaves_no_choice(case: Case, write_trace: Any) -> None:
    """Without redundant experts all three replica choices give the same figures."""
    answers = [measure(case, write_trace, replica_choice=choice)[0] for choice in CHOICES]
    for other in answers[1:]:
        np.testing.assert_allclose(figures(other), figures(answers[0]), atol=1e-12)
        np.testing.assert_allclose(other.load_LP, answers[0].load_LP, atol=1e-12)


@settings(RELAXED, max_examples=60)
@given(case=cases(), seed=st.integers(0, 2**32))
def test_relabelling_changes_nothing(case: Case, seed: int, write_trace: Any) -> None:
    """Renaming slots of a rank, ranks of a node, or nodes (and the homes with them) leaves every figure unchanged."""
    rng = np.random.default_rng(seed)
    nodes, gpus, slots = case.cluster.num_nodes, case.cluster.gpus_per_node, case.cluster.slots_per_gpu
    renamed = case.phy2log_LP.reshape(case.num_layers, nodes, gpus, slots).copy()
    for layer in range(case.num_layers):
        for node in range(nodes):
            for gpu in range(gpus):
                renamed[layer, node, gpu] = rng.permutation(renamed[layer, node, gpu])
            renamed[layer, node] = renamed[layer, node, rng.permutation(gpus)]
    order = rng.permutation(nodes)  # new node n is old node order[n]
    renamed = renamed[:, order].reshape(case.num_layers, -1)
    home_Q = None
    if case.home_Q is not None:
        home_Q = np.where(case.home_Q >= 0, np.argsort(order)[case.home_Q], -1).astype(np.int32)
    (before,) = measure(case, write_trace)
    (after,) = measure(case, write_trace, renamed, home_Q=home_Q)
    np.testing.assert_allclose(figures(after), figures(before), atol=1e-9)


@settings(RELAXED, max_examples=30)
@given(case=cases(redundant=True))
def test_min_nodes_is_the_least(case: Case, write_trace: Any) -> None:
    """No other replica choice reaches fewer nodes than `min-nodes`."""
    sends = {choice: measure(case, write_trace, replica_choice=choice)[0].node_sends_L for choice in CHOICES}
    assert (sends["min-nodes"] <= sends["local-first"] + 1e-12).all()
    assert (sends["min-nodes"] <= sends["uniform"] + 1e-12).all()


@settings(RELAXED, max_examples=20)
@given(case=cases())
def test_several_maps_are_measured_as_one_by_one(case: Case, write_trace: Any) -> None:
    """Comparing maps in one call changes none of their figures, whether they have redundant experts or not."""
    other = np.sort(case.phy2log_LP.reshape(case.num_layers, -1, case.cluster.slots_per_gpu), axis=2)
    other = other[:, ::-1].reshape(case.num_layers, -1)
    together = measure(case, write_trace, case.phy2log_LP, other)
    alone = measure(case, write_trace, case.phy2log_LP) + measure(case, write_trace, other)
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(figures(a), figures(b), atol=1e-12)
        np.testing.assert_allclose(a.load_LP, b.load_LP, atol=1e-12)


@settings(RELAXED, max_examples=40)
@given(case=cases() | uneven(), places=st.integers(1, 3), choice=st.sampled_from([*CHOICES, "min-nodes-balanced"]))
def test_places_without_an_expert_change_nothing(case: Case, places: int, choice: str, write_trace: Any) -> None:
    """Sets in rows with further places, all -1, cost bit for bit what they cost without; no figure asks for `top_k`."""
    wide = np.pad(
        case.ids_LTK, ((0, 0), (0, 0), (0, min(places, case.num_experts - case.ids_LTK.shape[2]))), constant_values=-1
    )
    padded = replace(case, ids_LTK=wide, signed=True)
    for transport in TRANSPORTS:
        if TRANSPORTS.make(transport).fault(case.cluster):
            continue  # its links are refused
        one, other = (
            measure(each, write_trace, transport=transport, replica_choice=choice)[0] for each in (case, padded)
        )
        np.testing.assert_array_equal(one.load_LP, other.load_LP)
        np.testing.assert_array_equal(one.assignments_L, other.assignments_L)
        assert (one.summary(), one.layers()) == (other.summary(), other.layers())


@pytest.mark.parametrize("choice", [*CHOICES, "min-nodes-balanced"])
def test_full_and_short_sets_in_one_trace(choice: str, tmp_path: Path, write_trace: Any) -> None:
    """A folder of unsigned ids and one of signed ids cost together what all their tokens cost as signed ids."""
    rng = np.random.default_rng(2)
    full = np.argsort(rng.random((2, 60, 8)), axis=2)[:, :, :3]
    short = short_sets(rng, np.argsort(rng.random((2, 40, 8)), axis=2)[:, :, :3], 0.4)
    write_trace(tmp_path / "two" / "a", ids_LTK=full, num_experts=8)
    write_trace(tmp_path / "two" / "b", ids_LTK=short, num_experts=8, short=0.0)
    write_trace(tmp_path / "one", ids_LTK=np.concatenate([full, short], axis=1), num_experts=8, short=0.0)
    model = Model(name="m", layer_ids=(0, 1), num_experts=8, top_k=3)
    rows = np.stack([sound_row(rng, 8, 4, 3) for _ in range(2)])
    placement = Placement(model=model, num_nodes=2, gpus_per_node=2, slots_per_gpu=3, phy2log_LP=rows)
    two, one = (evaluate(open_trace(tmp_path / name), [placement], replica_choice=choice)[0] for name in ("two", "one"))
    assert two.summary() == one.summary()
    np.testing.assert_allclose(two.load_LP, one.load_LP, rtol=1e-12)


def test_cutting_changes_nothing(tmp_path: Path, write_trace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards, blocks and threads do not show in the figures."""
    rng = np.random.default_rng(5)
    model = Model(name="m", layer_ids=(0, 1, 2), num_experts=8, top_k=3)
    rows = np.stack([sound_row(rng, 8, 4, 3) for _ in range(3)])
    placement = Placement(model=model, num_nodes=2, gpus_per_node=2, slots_per_gpu=3, phy2log_LP=rows)
    shape = {"num_layers": 3, "num_experts": 8, "top_k": 3, "tokens": 200, "requests": 9}
    whole = open_trace(write_trace(tmp_path / "one", **shape, num_shards=1).folder)
    cut = open_trace(write_trace(tmp_path / "five", **shape, num_shards=5).folder)
    (wanted,) = evaluate(whole, [placement])
    monkeypatch.setattr("placement.traces.trace.CHUNK_TOKENS", 7)
    with ThreadPoolExecutor(4) as executor:
        for answer in (*evaluate(cut, [placement]), *evaluate(cut, [placement], executor=executor)):
            np.testing.assert_allclose(figures(answer), figures(wanted), atol=1e-12)
            np.testing.assert_allclose(answer.load_LP, wanted.load_LP, atol=1e-9)
