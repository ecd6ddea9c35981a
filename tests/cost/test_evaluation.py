"""The exact evaluation agrees with a brute-force evaluator, and has the symmetries that its definition implies."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import Map, busiest, greedy_sizes, grouped, imbalance, layer_costs, layer_links, smallest_covers

from placement import Cluster, Evaluation, Model, Placement, Trace, evaluate, open_trace
from placement.core.topology import EVEN, Level, Topology
from placement.cost.transports import TRANSPORTS
from placement.errors import ClusterError, MapError, OptionError, TraceError
from placement.testing.problems import short_sets

COPY_BYTES = 7472 + 14384  # dispatch and combine, the cluster's defaults
CHOICES = ("min-nodes", "local-first", "uniform")
RELAXED = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@dataclass(frozen=True, kw_only=True)
class Case:
    """A random trace on disk's ingredients, a sound map for it, homes and a selection of requests."""

    ids_LTK: np.ndarray
    request_T: np.ndarray
    num_requests: int
    num_experts: int
    num_shards: int
    cluster: Cluster
    phy2log_LP: np.ndarray
    home_Q: np.ndarray | None
    selected_Q: np.ndarray | None
    choice: str
    signed: bool = False

    @property
    def num_layers(self) -> int:
        return self.ids_LTK.shape[0]

    @property
    def model(self) -> Model:
        return Model(
            name="m", layer_ids=tuple(range(self.num_layers)), num_experts=self.num_experts, top_k=self.ids_LTK.shape[2]
        )

    def placement(self, phy2log_LP: np.ndarray | None = None) -> Placement:
        return Placement(
            model=self.model,
            num_nodes=self.cluster.num_nodes,
            gpus_per_node=self.cluster.gpus_per_node,
            slots_per_gpu=self.cluster.slots_per_gpu,
            phy2log_LP=self.phy2log_LP if phy2log_LP is None else phy2log_LP,
        )

    def open(self, folder: str, write_trace: Callable[..., Any]) -> Trace:
        write_trace(
            folder,
            ids_LTK=self.ids_LTK,
            num_experts=self.num_experts,
            request_T=self.request_T,
            requests=self.num_requests,
            num_shards=self.num_shards,
            short=0.0 if self.signed else None,
        )
        trace = open_trace(folder)
        return trace if self.selected_Q is None else trace.select(self.selected_Q)


def sound_row(
    rng: np.random.Generator, num_experts: int, num_ranks: int, slots: int, *, wasted: float = 0.0
) -> np.ndarray:
    """A random map of one layer: every expert somewhere, copies anywhere; in a share `wasted` of the slots beyond one
    of each expert, an expert that their rank has already."""
    ranks: list[list[int]] = [[] for _ in range(num_ranks)]
    for expert in rng.permutation(num_experts):
        free = [rank for rank in range(num_ranks) if len(ranks[rank]) < slots]
        ranks[rng.choice(free)].append(int(expert))
    for held in ranks:
        rest = np.setdiff1d(np.arange(num_experts), held)
        more = rng.choice(rest, slots - len(held), replace=False).tolist()
        held += [int(rng.choice(held)) if held and rng.random() < wasted else expert for expert in more]
        rng.shuffle(held)
    return np.array(ranks).ravel()


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    redundant: bool | None = None,
    speeds: bool = False,
    many_nodes: bool = False,
    wasted: float = 0.0,
) -> Case:
    """Half of the cases are of sets that may be short: of some, all are full, and some have empty ones."""

    def uniform(low: int, high: int) -> int:  # st.integers prefers the smallest
        return draw(st.sampled_from(range(low, high + 1)))

    nodes, gpus = (6, 8), (1, 2)
    if not many_nodes:
        nodes, gpus = (1, 5), (1, 3)
    nodes, gpus = uniform(*nodes), uniform(*gpus)
    ranks = nodes * gpus
    if redundant is None:
        redundant = draw(st.booleans())
    if redundant:
        slots = uniform(2, 3 if many_nodes else 4)
        num_experts = uniform(8 if many_nodes else slots, min(ranks * slots, 16))
    else:
        slots = uniform(1, max(1, min(4, 20 // ranks)))
        num_experts = ranks * slots
    top_k = uniform(3, 5) if many_nodes else uniform(1, min(4, num_experts))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    num_layers, tokens, num_requests = uniform(1, 2), uniform(1, 12), uniform(1, 4)
    ids = np.argsort(rng.random((num_layers, tokens, num_experts)), axis=2)[:, :, :top_k]
    signed = draw(st.booleans())
    if signed:
        ids = short_sets(rng, ids, draw(st.sampled_from([0.0, 0.2, 0.7])))
    request_T = rng.integers(0, num_requests, tokens)
    homes = draw(st.sampled_from(["random", "given", "mixed"]))
    home_Q = None
    if homes != "random":
        home_Q = rng.integers(0 if homes == "given" else -1, nodes, num_requests).astype(np.int32)
    selected_Q = None
    if draw(st.booleans()):
        selected_Q = rng.random(num_requests) < 0.6
        selected_Q[request_T[0]] = True
    return Case(
        ids_LTK=ids,
        request_T=request_T,
        num_requests=num_requests,
        num_experts=num_experts,
        num_shards=draw(st.integers(1, min(3, tokens))),
        cluster=Cluster(
            num_nodes=nodes,
            gpus_per_node=gpus,
            slots_per_gpu=slots,
            gpu_speeds=tuple(rng.uniform(0.5, 2.0, ranks).tolist()) if speeds else (),
        ),
        phy2log_LP=np.stack([sound_row(rng, num_experts, ranks, slots, wasted=wasted) for _ in range(num_layers)]),
        home_Q=home_Q,
        selected_Q=selected_Q,
        choice=draw(st.sampled_from(CHOICES)),
        signed=signed,
    )


def measure(case: Case, write_trace: Callable[..., Any], *maps: np.ndarray, **more: Any) -> list[Evaluation]:
    """The library's answer for the case's map, or for `maps`."""
    with tempfile.TemporaryDirectory() as folder:
        trace = case.open(folder, write_trace)
        return evaluate(
            trace,
            [case.placement(row) for row in maps or (case.phy2log_LP,)],
            **{"cluster": case.cluster, "replica_choice": case.choice, "home_Q": case.home_Q} | more,
        )


def reference(case: Case, layer: int, *transport: str) -> Any:
    """Counts of copies; with a transport the price of what it sends from node to node."""
    kept = np.ones(len(case.request_T), dtype=bool)
    if case.selected_Q is not None:
        kept = case.selected_Q[case.request_T]
    home_Q = np.full(case.num_requests, -1) if case.home_Q is None else case.home_Q
    layout = Map(
        tuple(case.phy2log_LP[layer].tolist()),
        case.cluster.num_nodes,
        case.cluster.gpus_per_node,
        case.cluster.slots_per_gpu,
    )
    sets = [tuple(e for e in row if e >= 0) for row in case.ids_LTK[layer][kept].tolist()]
    homes = home_Q[case.request_T[kept]].tolist()
    if transport:
        return layer_links(layout, sets, homes, case.choice, transport[0], case.cluster)
    return layer_costs(layout, sets, homes, case.choice)


def figures(answer: Evaluation) -> np.ndarray:
    """All figures of an evaluation that do not depend on how ranks and nodes are numbered."""
    return np.stack(
        [
            answer.node_sends_L,
            answer.rank_sends_L,
            answer.remote_assignments_L,
            answer.rank_imbalance_L(),
            answer.node_imbalance_L(),
        ]
    )


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


@st.composite
def uneven(draw: st.DrawFn, *, wasted: float = 0.0) -> Case:
    """A case whose links differ: by levels and nodes, or by a matrix of ranks."""
    case = draw(cases(wasted=wasted))
    nodes, gpus = case.cluster.num_nodes, case.cluster.gpus_per_node
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if draw(st.booleans()):
        cost_GG = rng.uniform(0, 3, (nodes * gpus,) * 2)
        if draw(st.booleans()):  # links within nodes are free, as transports by node have them
            node_G = np.arange(nodes * gpus) // gpus
            cost_GG[node_G[:, None] == node_G] = 0
        topology = Topology(rank_cost=tuple(map(tuple, cost_GG.tolist())))
    else:
        blocks = [size for size in (1, 2) if nodes % size == 0]
        topology = Topology(
            levels=tuple(Level(name=f"{size}", nodes=size, gbps=rng.uniform(50, 500)) for size in blocks),
            node_gbps=tuple(rng.uniform(50, 500, nodes).tolist()),
        )
    return replace(case, cluster=replace(case.cluster, topology=topology))


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


def test_layers_with_a_top_k_of_their_own(tmp_path: Path, write_trace: Any) -> None:
    """By hand: two nodes of one GPU, experts 0 and 1 on the first. A layer of top-2, one of top-1, one of two tokens of
    which one lost its set; the modelled step counts the assignments of each layer."""
    ids_LTK = np.array([[[0, 2], [1, 3]], [[0, -1], [1, -1]], [[-1, -1], [3, 2]]])
    write_trace(tmp_path, ids_LTK=ids_LTK, num_experts=4, requests=1, short=0.0)
    model = Model(name="m", layer_ids=(0, 1, 2), num_experts=4, top_k=2)
    rows = np.tile(np.arange(4), (3, 1))
    placement = Placement(model=model, num_nodes=2, gpus_per_node=1, slots_per_gpu=2, phy2log_LP=rows)
    (answer,) = evaluate(open_trace(tmp_path), [placement])
    assert answer.assignments_L.tolist() == [2, 1, 1]
    assert answer.node_sends_L.tolist() == [1, 0.5, 0.25]
    assert answer.remote_assignments_L.tolist() == [1, 0.5, 0.5]
    assert answer.load_LG().tolist() == [[2, 2], [2, 0], [0, 2]]
    copy_us, bits = 256 * 21856 * 8 / 400e3, 256 * 21856 * 8 / 3600e3
    busiest = answer.sends_L * np.maximum(answer.busiest_in_L(), answer.busiest_out_L())
    busiest_load = np.array([2.0, 2.0, 2.0])  # the busiest GPU's, for each token that a GPU brings
    step_us = busiest * copy_us + busiest_load * (bits + 256 * 88_080_384 / 400e6) + 40
    assert answer.summary()["step_time_us"] == pytest.approx(step_us.sum(), abs=0.01)
    assert [layer["step_time_us"] for layer in answer.layers()] == pytest.approx(step_us, abs=0.01)
    assert {layer["governed_by"] for layer in answer.layers()} == {"compute"}


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


def test_by_hand(tmp_path: Path, write_trace: Any) -> None:
    """Figures worked out on paper: 2 nodes of 1 GPU, expert 1 on both, tokens {0,1} and {1,2}, random homes.

    Expert 0 is on node 0, expert 2 on node 1. min-nodes: the token {0,1} sends nothing from node 0; from node 1, which
    hosts expert 1, it sends to node 0 for expert 0. The token {1,2} mirrors it. Mean: 0.5 sends.
    uniform: {0,1} from node 0 sends with chance 1/2 (expert 1 away); from node 1 always (expert 0). Mean: 0.75 sends,
    0.5 * 0.5 + 0.5 * 1.5 = 1.0 assignments.
    """
    write_trace(tmp_path, ids_LTK=np.array([[[0, 1], [2, 1]]]), num_experts=3, requests=1)
    model = Model(name="m", layer_ids=(0,), num_experts=3, top_k=2)
    placement = Placement(
        model=model, num_nodes=2, gpus_per_node=1, slots_per_gpu=2, phy2log_LP=np.array([[0, 1, 1, 2]])
    )
    trace = open_trace(tmp_path)
    for choice, sends, remote in (("min-nodes", 0.5, 0.5), ("local-first", 0.5, 0.5), ("uniform", 0.75, 1.0)):
        (answer,) = evaluate(trace, [placement], replica_choice=choice)
        assert answer.summary()["node_sends_per_token"] == pytest.approx(sends), choice
        assert answer.summary()["remote_assignments_per_token"] == pytest.approx(remote), choice
        np.testing.assert_allclose(answer.load_LP, [[1, 1, 1, 1]])


def test_summary_figures(tmp_path: Path, write_trace: Any) -> None:
    """Bytes are copies times (dispatch + combine); step time follows the formula in its docstring."""
    written = write_trace(tmp_path, num_layers=3, num_experts=8, top_k=3, tokens=50)
    rng = np.random.default_rng(1)
    cluster = Cluster(
        num_nodes=2,
        gpus_per_node=2,
        slots_per_gpu=3,
        inter_gbps=100.0,
        intra_gbps=1000.0,
        gpu_tflops=50.0,
        expert_bytes=1_000_000,
        dispatch_bytes=100,
        combine_bytes=50,
    )
    model = Model(name="m", layer_ids=(0, 1, 2), num_experts=8, top_k=3)
    rows = np.stack([sound_row(rng, 8, 4, 3) for _ in range(3)])
    placement = Placement(model=model, num_nodes=2, gpus_per_node=2, slots_per_gpu=3, phy2log_LP=rows)
    (answer,) = evaluate(open_trace(tmp_path), [placement], cluster=cluster)
    summary, layers = answer.summary(), answer.layers()
    assert summary["tokens"] == 50 == len(written.request_T)
    assert summary["bytes_per_token"]["node"] == pytest.approx(answer.node_sends_L.mean() * 150, abs=0.06)
    assert summary["bytes_per_token"]["rank"] == pytest.approx(answer.rank_sends_L.mean() * 150, abs=0.06)
    assert summary["bytes_per_token"]["assignment"] == pytest.approx(answer.remote_assignments_L.mean() * 150, abs=0.06)
    for name in ("rank_imbalance", "node_imbalance", "busiest_in", "busiest_out"):
        values = [layer[name] for layer in layers]
        assert summary[name] == {"mean": pytest.approx(np.mean(values), abs=1e-6), "max": max(values)}
    wanted = 0.0
    for layer in range(3):
        busiest = max(layers[layer]["busiest_in"], layers[layer]["busiest_out"])
        load = 256 * 3 * answer.rank_imbalance_L()[layer]
        wanted += 256 * answer.node_sends_L[layer] * busiest * 150 * 8 / 100e3
        wanted += load * 150 * 8 / 1000e3 + load * 1_000_000 / 50e6 + 40
    assert summary["step_time_us"] == pytest.approx(wanted, abs=0.006)


class TestRefusals:
    """What does not fit together is refused with the reason, not measured wrongly."""

    @pytest.fixture
    def trace(self, tmp_path: Path, write_trace: Any) -> Trace:
        write_trace(tmp_path, num_experts=4, num_layers=1, top_k=2, requests=3)
        return open_trace(tmp_path)

    def _map(self, num_experts: int = 4, layer_ids: tuple[int, ...] = (0,), top_k: int = 2) -> Placement:
        model = Model(name="m", layer_ids=layer_ids, num_experts=num_experts, top_k=top_k)
        rows = np.tile(np.arange(num_experts), (len(layer_ids), 1))
        return Placement(model=model, num_nodes=2, gpus_per_node=1, slots_per_gpu=num_experts // 2, phy2log_LP=rows)

    @pytest.mark.parametrize("change", [{"num_experts": 6}, {"layer_ids": (0, 1)}, {"layer_ids": (1,)}, {"top_k": 3}])
    def test_map_of_another_model(self, trace: Trace, change: dict[str, Any]) -> None:
        with pytest.raises(MapError, match="the map is for"):
            evaluate(trace, [self._map(**change)])

    def test_cluster_of_another_shape(self, trace: Trace) -> None:
        with pytest.raises(MapError, match="the map is for 2 nodes x 1 GPUs x 2 slots"):
            evaluate(trace, [self._map()], cluster=Cluster(num_nodes=1, gpus_per_node=2, slots_per_gpu=2))

    def test_unknown_choice(self, trace: Trace) -> None:
        with pytest.raises(OptionError, match="nearest"):
            evaluate(trace, [self._map()], replica_choice="nearest")

    @pytest.mark.parametrize("homes", [[0, 1], [0, 1, 2], [0, 1, -2]])
    def test_homes(self, trace: Trace, homes: list[int]) -> None:
        with pytest.raises(OptionError, match="home_Q"):
            evaluate(trace, [self._map()], home_Q=np.array(homes))

    def test_bad_ids(self, tmp_path: Path, write_trace: Any) -> None:
        write_trace(tmp_path / "bad", ids_LTK=np.array([[[0, 1], [9, 1]]]), num_experts=4, requests=1)
        with pytest.raises(TraceError, match=r"layer 0, token 1 .*\[9, 1\]"):
            evaluate(open_trace(tmp_path / "bad"), [self._map()])
