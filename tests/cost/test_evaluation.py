"""The exact evaluation agrees with a brute-force evaluator: every figure, under all choices and transports."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from evaluation_cases import RELAXED, Case, cases, measure, reference, sound_row, uneven
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Map, busiest, greedy_sizes, grouped, imbalance, smallest_covers

from placement import Cluster, evaluate
from placement.core.topology import EVEN
from placement.cost.transports import TRANSPORTS
from placement.errors import ClusterError

COPY_BYTES = 7472 + 14384  # dispatch and combine, the cluster's defaults


@settings(RELAXED, max_examples=600)
@given(case=cases())
def test_equals_brute_force(case: Case, write_trace: Any) -> None:
    """Every figure equals the enumeration of all outcomes, for all choices, homes, shards and selections."""
    check_against_brute_force(case, write_trace)


@settings(RELAXED, max_examples=60)
@given(case=cases(redundant=True, many_nodes=True))
def test_equals_brute_force_up_to_eight_nodes(case: Case, write_trace: Any) -> None:
    """Covers are the smallest, and all of them, up to 8 nodes."""
    check_against_brute_force(case, write_trace)


@settings(RELAXED, max_examples=200)
@given(case=cases(redundant=True, wasted=0.7) | cases(redundant=True, many_nodes=True, wasted=0.7))
def test_equals_brute_force_where_a_rank_holds_an_expert_twice(case: Case, write_trace: Any) -> None:
    """By chance over all slots a rank counts as often as it has one; a rule that looks for ranks or nodes sees one."""
    check_against_brute_force(case, write_trace)


@settings(RELAXED, max_examples=60)
@given(case=cases(redundant=True, wasted=0.3), seed=st.integers(0, 2**32))
def test_equals_brute_force_where_layers_have_fewer_slots(case: Case, seed: int, write_trace: Any) -> None:
    """A layer whose GPUs lack some of the slots is measured like one with as few; the others as ever."""
    rng, cluster = np.random.default_rng(seed), case.cluster
    least = -(-case.num_experts // cluster.num_ranks)
    rows = case.phy2log_LP.copy()
    slots = int(rng.integers(least, cluster.slots_per_gpu + 1))
    held_GS = np.full((cluster.num_ranks, cluster.slots_per_gpu), -1)
    held_GS[:, :slots] = sound_row(rng, case.num_experts, cluster.num_ranks, slots).reshape(cluster.num_ranks, slots)
    rows[-1] = held_GS.ravel()
    check_against_brute_force(replace(case, phy2log_LP=rows), write_trace)


def check_against_brute_force(case: Case, write_trace: Any) -> None:
    (answer,) = measure(case, write_trace)
    for layer in range(case.num_layers):
        wanted = reference(case, layer)
        assert answer.node_sends_L[layer] == pytest.approx(wanted.node_sends, abs=1e-9)
        assert answer.rank_sends_L[layer] == pytest.approx(wanted.rank_sends, abs=1e-9)
        assert answer.remote_assignments_L[layer] == pytest.approx(wanted.remote_assignments, abs=1e-9)
        row, experts = (
            case.phy2log_LP[layer] % case.num_experts,
            case.num_experts,
        )  # places without a slot serve nothing
        if not case.placement().wasted_LP().any():
            np.testing.assert_allclose(answer.load_LP[layer], wanted.load_of_slot, atol=1e-9)
        served, asked = (np.bincount(row, load, experts) for load in (answer.load_LP[layer], wanted.load_of_slot))
        np.testing.assert_allclose(served, asked, atol=1e-9)
        assert answer.assignments_L[layer] == pytest.approx(sum(wanted.load_of_slot) / answer.num_tokens, abs=1e-9)
        ranks = grouped(wanted.load_of_slot, case.cluster.slots_per_gpu)
        nodes = grouped(wanted.load_of_slot, case.cluster.slots_per_node)
        np.testing.assert_allclose(answer.load_LG()[layer], ranks, atol=1e-9)
        assert answer.rank_imbalance_L()[layer] == pytest.approx(imbalance(ranks, [1.0] * len(ranks)), abs=1e-9)
        assert answer.node_imbalance_L()[layer] == pytest.approx(imbalance(nodes, [1.0] * len(nodes)), abs=1e-9)


@settings(RELAXED, max_examples=50)
@given(case=cases() | cases(redundant=True) | uneven() | uneven(wasted=0.7))
def test_sends_are_the_price_of_every_copy(case: Case, write_trace: Any) -> None:
    """Under every transport, choice, topology and kind of homes; those of `allgather` are the same for every map."""
    other = case.phy2log_LP[:, ::-1]
    for transport in TRANSPORTS:
        if fault := TRANSPORTS.make(transport).fault(case.cluster):
            with pytest.raises(ClusterError, match="both are of one node") as told:
                measure(case, write_trace, case.phy2log_LP, transport=transport)
            assert str(told.value) == fault
            continue
        answer, turned = measure(case, write_trace, case.phy2log_LP, other, transport=transport)
        wanted_LNN = [reference(case, layer, transport) for layer in range(case.num_layers)]
        np.testing.assert_allclose(answer.links_LNN, wanted_LNN, atol=1e-9)
        np.testing.assert_allclose(answer.sends_L, np.sum(wanted_LNN, axis=(1, 2)), atol=1e-9)
        for links_NN, busiest_in, busiest_out in zip(
            wanted_LNN, answer.busiest_in_L(), answer.busiest_out_L(), strict=True
        ):
            assert busiest_out == pytest.approx(busiest([sum(row) for row in links_NN]))
            assert busiest_in == pytest.approx(busiest([sum(column) for column in zip(*links_NN, strict=True)]))
        of_nodes_LN = answer.into_LG.reshape(case.num_layers, case.cluster.num_nodes, -1).sum(axis=2)
        np.testing.assert_allclose(of_nodes_LN, np.sum(wanted_LNN, axis=1), atol=1e-9)
        if transport == "allgather":
            np.testing.assert_allclose(turned.sends_L, answer.sends_L, rtol=1e-12)
        if case.cluster.topology == EVEN:
            np.testing.assert_allclose(answer.bytes_per_token(), answer.sends_L.mean() * COPY_BYTES, rtol=1e-9)


@settings(RELAXED, max_examples=30)
@given(case=cases(redundant=False).filter(lambda case: case.home_Q is None and case.selected_Q is None))
def test_cards_get_what_their_gpus_serve(case: Case, write_trace: Any) -> None:
    """Random homes, one slot an expert: a GPU's card gets each token from elsewhere that the GPU serves once, or each
    assignment; where copies are for nodes, the cards of a node share what the node gets."""
    elsewhere = 1 - 1 / case.cluster.num_nodes
    for transport in ("rank", "assignment", "node"):
        (answer,) = measure(case, write_trace, transport=transport)
        for layer, row in enumerate(case.phy2log_LP):
            rank_of = {int(e): slot // case.cluster.slots_per_gpu for slot, e in enumerate(row)}
            got = [0.0] * case.cluster.num_ranks
            for experts in case.ids_LTK[layer]:
                ranks = [rank_of[int(e)] for e in experts if e >= 0]
                if transport == "node":
                    nodes = {rank // case.cluster.gpus_per_node for rank in ranks}
                    share = 1 / case.cluster.gpus_per_node
                    for rank in range(len(got)):
                        got[rank] += share * (rank // case.cluster.gpus_per_node in nodes)
                    continue
                for rank in set(ranks) if transport == "rank" else ranks:
                    got[rank] += 1
            wanted_G = [elsewhere * count / answer.num_tokens for count in got]
            np.testing.assert_allclose(answer.into_LG[layer], wanted_G, atol=1e-9)
            assert answer.busiest_card_L()[layer] == pytest.approx(busiest([w if w > 1e-12 else 0 for w in wanted_G]))


@settings(RELAXED, max_examples=40)
@given(case=cases(speeds=True))
def test_imbalance_counts_relative_speeds(case: Case, write_trace: Any) -> None:
    """A slow GPU's load weighs more: 1.0 means every GPU needs the same time."""
    (answer,) = measure(case, write_trace)
    speeds = case.cluster.gpu_speeds
    of_nodes = [s / case.cluster.gpus_per_node for s in grouped(speeds, case.cluster.gpus_per_node)]
    for layer in range(case.num_layers):
        load = reference(case, layer).load_of_slot
        ranks, nodes = grouped(load, case.cluster.slots_per_gpu), grouped(load, case.cluster.slots_per_node)
        assert answer.rank_imbalance_L()[layer] == pytest.approx(imbalance(ranks, speeds), abs=1e-9)
        assert answer.node_imbalance_L()[layer] == pytest.approx(imbalance(nodes, of_nodes), abs=1e-9)


@settings(RELAXED, max_examples=25)
@given(
    nodes=st.sampled_from(range(9, 13)),
    gpus=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**32),
    top_k=st.sampled_from(range(1, 6)),
)
def test_beyond_eight_nodes(nodes: int, gpus: int, seed: int, top_k: int, write_trace: Any) -> None:
    """The greedy cover of large clusters is never smaller than the smallest, nor larger where one node suffices."""
    rng = np.random.default_rng(seed)
    num_experts, slots, tokens = 2 * nodes * gpus, 3, 12
    case = Case(
        ids_LTK=np.argsort(rng.random((1, tokens, num_experts)), axis=2)[:, :, :top_k],
        request_T=np.arange(tokens),
        num_requests=tokens,
        num_experts=num_experts,
        num_shards=1,
        cluster=Cluster(num_nodes=nodes, gpus_per_node=gpus, slots_per_gpu=slots),
        phy2log_LP=sound_row(rng, num_experts, nodes * gpus, slots)[None],
        home_Q=rng.integers(0, nodes, tokens).astype(np.int32),
        selected_Q=None,
        choice="min-nodes",
    )
    layout = Map(tuple(case.phy2log_LP[0].tolist()), nodes, gpus, slots)
    with tempfile.TemporaryDirectory() as folder:
        trace = case.open(folder, write_trace)
        for token in range(tokens):
            home = int(case.home_Q[token])
            far = [e for e in case.ids_LTK[0, token].tolist() if not layout.slots_on(e, home)]
            least = len(smallest_covers(layout, far, home)[0])
            (answer,) = evaluate(
                trace.select(np.arange(tokens) == token),
                [case.placement()],
                replica_choice="min-nodes",
                home_Q=case.home_Q,
            )
            sends = answer.node_sends_L[0]
            assert sends >= least - 1e-12
            assert round(sends) in greedy_sizes(layout, far, home)
            assert answer.remote_assignments_L[0] == pytest.approx(len(far))
            if least <= 1:
                assert sends == pytest.approx(least)
