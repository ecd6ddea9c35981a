"""Evaluate maps on traces: exact, on every kept token."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.choices import REPLICA_CHOICE, TRANSPORT
from placement.core.cluster import Cluster
from placement.core.placement import Placement
from placement.cost.given import checked_homes, cluster_of, clusters_for
from placement.cost.meter import Meter
from placement.cost.step_time import STEP_TOKENS_PER_GPU, Work, active_experts, governing, term_times_us
from placement.cost.traffic import Traffic
from placement.cost.transport import busiest_in_out, imbalance_of, into_G, links_NN, nothing_but_sends
from placement.cost.transports import TRANSPORTS
from placement.traces.token_order import token_batches
from placement.traces.trace import Trace
from placement.workload.counts_file import ExpertCounts

Summary = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What a map costs on a trace.

    Where only counts are known (`evaluate_counts`), sends are NaN here and None in `summary` and `layers`.

    Attributes:
        num_tokens: Tokens of the trace.
        assignments_L: Assignments of a token, mean over tokens, float64 [L]: K where every set has K experts.
        cluster: The cluster that the map was measured on.
        node_sends_L: Copies of a token that leave for distinct remote nodes, mean over tokens and homes, float64 [L].
        rank_sends_L: Copies that leave for distinct ranks on remote nodes, float64 [L].
        remote_assignments_L: Assignments of a token that are served on remote nodes, float64 [L].
        transport: What the engine sends (see `placement/cost/transports/`).
        sends_L: What the engine sends per token, each copy weighed by the cost of its link, float64 [L].
        links_LNN: The same sends from home node to node, float64 [L, N, N].
        into_LG: The same sends into each GPU, float64 [L, G]; those for a node reach its GPUs evenly, rail by rail.
        load_LP: Assignments served by each slot, float64 [L, P].
        sampled_tokens: Tokens on which sends were measured; None: all.
        sends_error: Standard error of the mean of `sends_L`, where sends were measured on a sample; None: unknown.
    """

    num_tokens: int
    assignments_L: npt.NDArray[np.float64]
    cluster: Cluster
    node_sends_L: npt.NDArray[np.float64]
    rank_sends_L: npt.NDArray[np.float64]
    remote_assignments_L: npt.NDArray[np.float64]
    transport: str
    sends_L: npt.NDArray[np.float64]
    links_LNN: npt.NDArray[np.float64]
    into_LG: npt.NDArray[np.float64]
    load_LP: npt.NDArray[np.float64]
    sampled_tokens: int | None = None
    sends_error: float | None = None

    def load_LG(self) -> npt.NDArray[np.float64]:
        """Assignments served by each rank, float64 [L, G], after what the engine balances at run time."""
        load_LG = self.load_LP.reshape(len(self.load_LP), self.cluster.num_ranks, -1).sum(axis=2)
        return self.cluster.served_XG(np.asarray(load_LG))

    def rank_imbalance_L(self) -> npt.NDArray[np.float64]:
        """Most loaded rank over the mean rank, float64 [L]; a rank's load is divided by its relative speed."""
        return imbalance_of(self.load_LG(), self.cluster.speed_G())

    def node_imbalance_L(self) -> npt.NDArray[np.float64]:
        """Most loaded node over the mean node, float64 [L]."""
        shape = (-1, self.cluster.num_nodes, self.cluster.gpus_per_node)
        speed_N = self.cluster.speed_G().reshape(shape[1:]).mean(axis=1)
        return imbalance_of(self.load_LG().reshape(shape).sum(axis=2), speed_N)

    def busiest_in_L(self) -> npt.NDArray[np.float64]:
        """Sends into the node that gets most over the mean node, float64 [L]; 1 where nothing is sent."""
        return busiest_in_out(self.links_LNN)[0]

    def busiest_out_L(self) -> npt.NDArray[np.float64]:
        """Sends out of the home node that sends most over the mean node, float64 [L]; 1 where nothing is sent."""
        return busiest_in_out(self.links_LNN)[1]

    def busiest_card_L(self) -> npt.NDArray[np.float64]:
        """Sends into the GPU that gets most over the mean GPU, float64 [L]; 1 where nothing is sent."""
        return imbalance_of(nothing_but_sends(self.into_LG))

    def busiest_sends_L(self) -> npt.NDArray[np.float64]:
        """Sends times the larger of `busiest_in_L` and `busiest_out_L`, float64 [L]."""
        return np.asarray(self.sends_L * np.maximum(self.busiest_in_L(), self.busiest_out_L()))

    def term_times_L6(self, tokens_per_gpu: int = STEP_TOKENS_PER_GPU) -> npt.NDArray[np.float64]:
        """Microseconds of each term of a step of mean loads, float64 [L, 6] by `placement.cost.step_time.Term`.

        Args:
            tokens_per_gpu: Tokens that each GPU brings to the step.
        """
        load_L = tokens_per_gpu * self.assignments_L * self.rank_imbalance_L()
        visits_LP = self.load_LP / max(self.num_tokens, 1)
        work = Work(
            busiest=tokens_per_gpu * self.busiest_sends_L(),
            copies=tokens_per_gpu * self.sends_L,
            load=load_L,
            experts=active_experts(visits_LP, self.cluster, tokens_per_gpu),
        )
        return term_times_us(self.cluster, work)

    def bytes_per_token(self) -> float:
        """Bytes that the transport moves between nodes per token and layer, dispatch and combine."""
        leaving_L3 = np.stack([self.node_sends_L, self.rank_sends_L, self.remote_assignments_L], axis=1)
        copies_L = TRANSPORTS.make(self.transport).between_nodes_L(leaving_L3, self.cluster.num_nodes)
        return float(copies_L.mean()) * (self.cluster.dispatch_bytes + self.cluster.combine_bytes)

    def summary(self) -> Summary:
        """The figures that every command and file shows, with the same keys everywhere; means over layers.

        Where sends were measured on a sample it is said, in two keys more.
        """
        copy_bytes = self.cluster.dispatch_bytes + self.cluster.combine_bytes
        return {
            "tokens": self.num_tokens,
            "sends_per_token": _round(float(self.sends_L.mean())),
            "node_sends_per_token": _round(float(self.node_sends_L.mean())),
            "rank_sends_per_token": _round(float(self.rank_sends_L.mean())),
            "remote_assignments_per_token": _round(float(self.remote_assignments_L.mean())),
            "rank_imbalance": _mean_max(self.rank_imbalance_L()),
            "node_imbalance": _mean_max(self.node_imbalance_L()),
            "busiest_in": _mean_max(self.busiest_in_L()),
            "busiest_out": _mean_max(self.busiest_out_L()),
            "busiest_card": _mean_max(self.busiest_card_L()),
            "bytes_per_token": {
                "node": _round(float(self.node_sends_L.mean()) * copy_bytes, 1),
                "rank": _round(float(self.rank_sends_L.mean()) * copy_bytes, 1),
                "assignment": _round(float(self.remote_assignments_L.mean()) * copy_bytes, 1),
            },
            "step_time_us": _round(float(self.term_times_L6().sum()), 2),
        } | self._sampling()

    def _sampling(self) -> Summary:
        if self.sampled_tokens is None:
            return {}
        error = None if self.sends_error is None else _round(self.sends_error)
        return {"sampled_tokens": self.sampled_tokens, "sends_error": error}

    def layers(self) -> list[Summary]:
        """The figures of every layer."""
        columns = {
            "sends_per_token": self.sends_L,
            "node_sends_per_token": self.node_sends_L,
            "rank_sends_per_token": self.rank_sends_L,
            "remote_assignments_per_token": self.remote_assignments_L,
            "rank_imbalance": self.rank_imbalance_L(),
            "node_imbalance": self.node_imbalance_L(),
            "busiest_in": self.busiest_in_L(),
            "busiest_out": self.busiest_out_L(),
            "busiest_card": self.busiest_card_L(),
        }
        times_L6 = self.term_times_L6()
        return [
            {name: _round(float(values[layer])) for name, values in columns.items()}
            | {"step_time_us": _round(float(times_6.sum()), 2), "governed_by": governing(times_6)}
            for layer, times_6 in enumerate(times_L6)
        ]


def evaluate(
    trace: Trace,
    placements: Sequence[Placement],
    *,
    cluster: Cluster | Sequence[Cluster | None] | None = None,
    replica_choice: str = REPLICA_CHOICE,
    transport: str = TRANSPORT,
    home_Q: npt.NDArray[np.int32] | None = None,
    executor: Executor | None = None,
) -> list[Evaluation]:
    """Exact cost of each placement on every kept token of `trace`, in one pass over it.

    Args:
        trace: Where the tokens come from; its kept tokens count.
        placements: The maps to measure, all of the trace's model.
        cluster: Links, bytes and speeds, one for all maps or one for each; None: the defaults. Shapes must agree.
        replica_choice: How the engine picks the replica that serves an assignment.
        transport: What the engine's all-to-all sends.
        home_Q: Home node of every request, int32 [Q]; None, or -1 for a request, takes the mean over all nodes.
        executor: Runs the layers side by side; None: one after another.

    Returns:
        One evaluation for each placement, in their order.

    Raises:
        MapError: A map is for another model, or another shape of cluster.
        OptionError: An option is unknown, or `home_Q` has another shape or other nodes.
        TraceError: A shard of the trace is wrong.
    """
    clusters = clusters_for(trace.model, placements, cluster, transport)
    homes = checked_homes(home_Q, len(trace.requests), placements)
    meter = Meter(trace.model, placements, clusters, replica_choice, transport, homes_are_random=home_Q is None)
    for tokens in token_batches(trace, mixed=meter.in_order):
        meter.add(homes[tokens.request_T], tokens.ids_TK, executor)
    return [
        evaluation_of(meter.num_tokens, meter.served_L, one, transport, layers, load_LP)
        for one, layers, load_LP in zip(clusters, meter.traffic, meter.loads, strict=True)
    ]


def evaluate_counts(
    counts: ExpertCounts, placements: Sequence[Placement], *, cluster: Cluster, transport: str = TRANSPORT
) -> list[Evaluation]:
    """What counts tell of each placement: its balance, an expert's load shared evenly over its slots, but no sends.

    (Those of `allgather` are the same for every placement, and known.) Sets are taken to be full: counts do not say.
    """
    TRANSPORTS.check(transport)
    load_LE = counts.load_LE() * counts.unit
    unknown_L = np.full(counts.model.num_layers, np.nan)
    nothing = Traffic.start(cluster.num_nodes, cluster.num_ranks)
    known_NN, known_G = (of(nothing, cluster, transport, 1) for of in (links_NN, into_G))
    if not TRANSPORTS.make(transport).everywhere:
        known_NN, known_G = np.full_like(known_NN, np.nan), np.full_like(known_G, np.nan)
    links_LNN, into_LG = (np.repeat(one[None], counts.model.num_layers, axis=0) for one in (known_NN, known_G))
    return [
        Evaluation(
            num_tokens=counts.num_tokens,
            assignments_L=np.full(counts.model.num_layers, float(counts.model.top_k)),
            cluster=cluster_of(placement, cluster),
            node_sends_L=unknown_L,
            rank_sends_L=unknown_L,
            remote_assignments_L=unknown_L,
            transport=transport,
            sends_L=links_LNN.sum(axis=(1, 2)),
            links_LNN=links_LNN,
            into_LG=into_LG,
            load_LP=np.stack(
                [even_load(load_E, row) for load_E, row in zip(load_LE, placement.phy2log_LP, strict=True)]
            ),
        )
        for placement in placements
    ]


def even_load(load_E: npt.NDArray[np.float64], phy2log_P: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """What each slot serves where the copies of an expert share its load evenly, float64 [P]."""
    each_E = load_E / np.bincount(phy2log_P[phy2log_P >= 0], minlength=len(load_E))
    return np.where(phy2log_P >= 0, each_E[phy2log_P], 0.0)


def evaluation_of(
    num_tokens: int,
    served_L: npt.NDArray[np.int64],
    cluster: Cluster,
    transport: str,
    traffic: list[Traffic],
    load_LP: npt.NDArray[np.float64],
) -> Evaluation:
    leaving_L3 = np.array([one.leaving_3() for one in traffic]) / max(num_tokens, 1)
    links_LNN, into_LG = (
        np.stack([of(one, cluster, transport, num_tokens) for one in traffic]) for of in (links_NN, into_G)
    )
    return Evaluation(
        num_tokens=num_tokens,
        assignments_L=served_L / max(num_tokens, 1),
        cluster=cluster,
        node_sends_L=leaving_L3[:, 0],
        rank_sends_L=leaving_L3[:, 1],
        remote_assignments_L=leaving_L3[:, 2],
        transport=transport,
        sends_L=links_LNN.sum(axis=(1, 2)),
        links_LNN=links_LNN,
        into_LG=into_LG,
        load_LP=load_LP,
    )


def _mean_max(values: npt.NDArray[np.float64]) -> dict[str, float | None] | None:
    if not np.isfinite(values).all():
        return None
    return {"mean": _round(float(values.mean())), "max": _round(float(values.max()))}


def _round(value: float, digits: int = 6) -> float | None:
    return round(value, digits) if np.isfinite(value) else None
