"""Random traces, maps, homes and selections of requests, and what an independent evaluator says of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from reference import Map, layer_costs, layer_links

from placement import Cluster, Evaluation, Model, Placement, Trace, evaluate, open_trace
from placement.core.topology import Level, Topology
from placement.testing.problems import short_sets

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
