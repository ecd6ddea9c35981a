"""What `network.py` replays: maps and homes from training requests, tokens of held-out ones, their cost."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from placement import Cluster, Evaluation, Options, Placement, Trace, evaluate, open_trace
from placement.pipeline.with_homes import solve_grouped
from placement.runtime.wire import Wire
from placement.traces.cut import cut_requests
from placement.traces.format import RequestEntry, TraceManifest, id_dtype, write_manifest, write_shard
from placement.traces.split import split_requests

HOLDOUT = 0.3
TRANSPORT = {"hierarchical": "node", "flat": "rank"}


def add_mesh_options(parser: argparse.ArgumentParser, *, gpus_per_node: int) -> None:
    """Options of the ranks, and how rows go between them."""
    parser.add_argument("--hops", choices=TRANSPORT, default="hierarchical")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--gpus-per-node", type=int, default=gpus_per_node)


def add_replay_options(parser: argparse.ArgumentParser) -> None:
    """Options of what is solved, and of the tokens and layers that are replayed."""
    parser.add_argument("--layers", type=int, default=6, help="so many of the layers are replayed, evenly spread")
    parser.add_argument("--steps", type=int, default=8, help="the tokens of a layer are dealt out over so many steps")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--intermediate", type=int, default=128)
    parser.add_argument("--seed", type=int, default=100, help="of the split by request and of the search")
    parser.add_argument("--work-limit", type=int, help="of the search; default: by the size of a layer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A map and the tokens of every rank: the trace's request `s * G + g` is what rank `g` brings to step `s`.

    predicted  of all tokens
    steps      of each step's
    """

    trace: Path
    placement: Placement
    predicted: Evaluation
    steps: tuple[Evaluation, ...]

    @property
    def predicted_bytes(self) -> float:
        return self.predicted.bytes_per_token() * self.predicted.num_tokens * self.placement.model.num_layers


def plan(trace: Trace, args: argparse.Namespace, folder: Path) -> dict[str, Way]:
    """Maps from all layers of the training requests; then the layers and tokens to replay, and their cost."""
    _, held_out = split_requests(trace, HOLDOUT, args.seed)
    wire = Wire(hidden=args.hidden, dtype=torch.bfloat16, width=trace.model.top_k)
    options = Options(seed=args.seed, transport=TRANSPORT[args.hops], work_limit=args.work_limit)
    ways = {}
    for redundant, share in ((redundant, share) for redundant in args.redundant for share in args.busy_share):
        cluster = Cluster.fit(
            trace.model.num_experts,
            num_nodes=args.nodes,
            gpus_per_node=args.gpus_per_node,
            redundant_experts=redundant,
        )
        cluster = replace(cluster, dispatch_bytes=wire.row_bytes, combine_bytes=wire.return_bytes)
        grouped = solve_grouped(trace, cluster, replace(options, busy_share=share), holdout=HOLDOUT)
        _, rest = cut_requests(held_out, grouped.home_from)
        requests = grouped.requests.sum(rest.tokens_Q())
        first = share == args.busy_share[0]
        for name in ("linear", "eplb", "auto", "joint + homes") if first else ("auto", "joint + homes"):
            gain = grouped.gain(name)
            home_Q = np.full(len(requests), -1) if gain.homes is None else gain.homes.held_out_Q
            rank_Q = deal(requests, home_Q, cluster)[grouped.requests.request_E]
            said = (
                f"{'grouped' if gain.homes else name}, {redundant} redundant{f', share {share:g}' if not first else ''}"
            )
            ways[said] = replay(rest, rank_Q, gain.placement, cluster, args, folder / f"trace{len(ways)}")
    return ways


def deal(tokens_Q: npt.NDArray[np.int64], home_Q: npt.NDArray[Any], cluster: Cluster) -> npt.NDArray[np.int64]:
    """A rank for every request: the one with the fewest tokens (of its home, -1: of all), the longest request first."""
    load_G, rank_Q = np.zeros(cluster.num_ranks), np.full(len(tokens_Q), -1)
    for q in np.argsort(-tokens_Q, kind="stable"):
        first = home_Q[q] * cluster.gpus_per_node
        mine = range(first, first + cluster.gpus_per_node) if first >= 0 else range(cluster.num_ranks)
        rank_Q[q] = min(mine, key=load_G.__getitem__)
        load_G[rank_Q[q]] += tokens_Q[q]
    return rank_Q


def replay(
    trace: Trace,
    rank_Q: npt.NDArray[np.int64],
    placement: Placement,
    cluster: Cluster,
    args: argparse.Namespace,
    to: Path,
) -> Way:
    """The tokens and layers to replay as a trace of their own, with a request for every rank and step."""
    model = trace.model
    chosen = np.unique(np.linspace(0, model.num_layers - 1, args.layers).round().astype(int)).tolist()
    blocks = list(trace.blocks())
    ids_LTK = np.stack([np.concatenate([block.ids_TK(layer) for block in blocks]) for layer in chosen])
    rank_T = rank_Q[np.concatenate([block.request_T for block in blocks])]
    request_T = np.empty(len(rank_T), np.int32)
    for rank in range(cluster.num_ranks):
        for step, mine in enumerate(np.array_split(np.flatnonzero(rank_T == rank), args.steps)):
            request_T[mine] = step * cluster.num_ranks + rank
    to.mkdir()
    nothing_T = np.zeros(len(rank_T), np.int32)
    write_shard(
        to / "shard-00000.safetensors",
        ids_LTK=ids_LTK.astype(id_dtype(model.num_experts)),
        request_T=request_T,
        position_T=nothing_T,
        phase_T=nothing_T,
    )
    manifest = TraceManifest(
        schema="expert-trace/1",
        model=model.name,
        layer_ids=[model.layer_ids[layer] for layer in chosen],
        num_experts=model.num_experts,
        top_k=model.top_k,
        num_tokens=len(rank_T),
        requests=[
            RequestEntry(id=f"step {step}, rank {rank}")
            for step in range(args.steps)
            for rank in range(cluster.num_ranks)
        ],
    )
    write_manifest(to, manifest)
    written = open_trace(to)
    some = replace(placement, model=written.model, phy2log_LP=placement.phy2log_LP[chosen])
    step_Q, rank_Q = np.divmod(np.arange(args.steps * cluster.num_ranks), cluster.num_ranks)
    home_Q = (rank_Q // cluster.gpus_per_node).astype(np.int32)

    def measured(tokens: Trace) -> Evaluation:
        return evaluate(tokens, [some], cluster=cluster, transport=TRANSPORT[args.hops], home_Q=home_Q)[0]

    steps = tuple(measured(written.select(step_Q == step)) for step in range(args.steps))
    return Way(trace=to, placement=some, predicted=measured(written), steps=steps)
