"""Homes from the proxy on a real network: prompts go through `placement route`, then the tokens of their answers run.

python benchmarks/runtime/homes_network.py TRACE [--texts TEXTS.npz] [--mbit 200] [--redundant 0] [--seed 100]

1. Placement, homes and router are solved together on the training requests and written, as `placement group` does.
2. The prompts of the held-out requests are asked of `placement route` in front of a door for each node, which holds a
   request for as long as its answer has tokens; whose door a request comes to is its home.
3. The answers' tokens run on shaped links as in `network.py`, which needs root: the recorded experts of every generated
   token, from the request's home. All ways have the same map and the same tokens, and take turns at every step.

random     homes by length alone, so that every rank has as many tokens
proxy      as above: from the prompt and the load that the proxy saw
oracle     the best homes within the tolerance, from the very experts that follow
per token  dispatch, experts and combine of all replayed layers, of all steps, over the tokens
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import numpy as np
import torch
from homes import with_tokens
from homes_asked import homes_by_proxy
from machine import describe_machine, input_texts, input_trace
from network import links, run, spans_ms
from network_plan import HOLDOUT, TRANSPORT, Way, add_mesh_options, add_replay_options, deal, replay
from shaped_network import why_not

from placement import Cluster, Options, Trace, open_trace
from placement.grouping.assign import assign_homes
from placement.grouping.home_costs import home_costs
from placement.pipeline.with_homes import solve_grouped
from placement.runtime.wire import Wire
from placement.traces.prompts import prompts_of

COLUMNS = (
    *("way", "predicted, MB", "counted, MB", "counted / predicted", "of random's"),
    "tokens of a node, most over the mean",
    *("busiest link, of random's", "comm, s", "of random's", "per token, ms", "of random's"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=input_trace, help="folder of an expert-trace/1")
    parser.add_argument("--texts", type=input_texts, help="texts of a trace that has none, as of benchmarks/homes.py")
    parser.add_argument("--mbit", type=float, default=200.0, help="Mbit/s of every node's link; 0: unshaped")
    parser.add_argument("--redundant", type=int, default=0, help="redundant experts of a layer")
    parser.add_argument("--at-a-time", type=int, default=1000, help="most requests that wait for an answer")
    add_mesh_options(parser, gpus_per_node=1)
    add_replay_options(parser)
    args = parser.parse_args()
    args.with_experts = True
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    if reason := why_not():
        raise SystemExit(f"skipped: {reason}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trace = open_trace(args.trace)
        if args.texts is not None:
            (folder / "texts").mkdir()
            trace = with_tokens(trace, args.texts, folder / "texts")
        print(f"# Homes from the proxy: {trace.model.name}, {args.hops}\n")
        print(f"{describe_machine()}, torch {torch.__version__}, gloo; load average {os.getloadavg()[0]:.1f}\n")
        ways, told = ways_of(trace, args, folder)
        print(told)
        measured = run(folder, ways, args, args.mbit)
        print(f"\n## {f'{args.mbit:g} Mbit/s a node and direction' if args.mbit else 'Unshaped'}\n")
        print("\n".join(table(ways, measured, args.gpus_per_node)))
        print(f"\nLoad average at the end {os.getloadavg()[0]:.1f}.")


def ways_of(trace: Trace, args: argparse.Namespace, folder: Path) -> tuple[dict[str, Way], str]:
    """The three ways, and what was done for them in words."""
    wire = Wire(hidden=args.hidden, dtype=torch.bfloat16, width=trace.model.top_k)
    shape = {"num_nodes": args.nodes, "gpus_per_node": args.gpus_per_node}
    cluster = Cluster.fit(trace.model.num_experts, redundant_experts=args.redundant, **shape)
    cluster = replace(cluster, dispatch_bytes=wire.row_bytes, combine_bytes=wire.return_bytes)
    options = Options(seed=args.seed, transport=TRANSPORT[args.hops], work_limit=args.work_limit)
    grouped = solve_grouped(trace, cluster, options, holdout=HOLDOUT)
    held_out = trace.select(grouped.held_out_Q[grouped.requests.request_E])
    requests, placement = grouped.requests, grouped.solution.placement
    costs = home_costs(held_out, requests, placement, cluster, transport=TRANSPORT[args.hops])
    asked = np.flatnonzero(grouped.held_out_Q & (costs.tokens_Q > 0))
    entry_of = {int(q): at for at, q in reversed(list(enumerate(requests.request_E)))}
    known = prompts_of(trace)
    prompts = [known.list_of(entry_of[int(q)]).tolist() for q in asked]
    home_Q = np.full(len(requests.ids), -1)
    home_Q[asked] = asyncio.run(
        homes_by_proxy(grouped, prompts, costs.tokens_Q[asked], folder, at_a_time=args.at_a_time, seed=args.seed)
    )
    best = assign_homes(costs.cost_QN[asked], costs.tokens_Q[asked], tolerance=grouped.tolerance)
    oracle_Q = np.full(len(requests.ids), -1)
    oracle_Q[asked] = best.home_Q
    ways = {}
    for name, homes in (("random", np.full(len(requests.ids), -1)), ("proxy", home_Q), ("oracle", oracle_Q)):
        rank_Q = deal(costs.tokens_Q, homes, cluster)[requests.request_E]
        ways[name] = replay(held_out, rank_Q, placement, cluster, args, folder / name)
    return ways, (
        f"{args.nodes} nodes x {args.gpus_per_node} ranks, {args.redundant} redundant experts, split seed {args.seed}: "
        f"{len(asked)} held-out prompts, {int(costs.tokens_Q[asked].sum())} generated tokens in {args.steps} steps, "
        f"{args.layers} of {trace.model.num_layers} layers, hidden size {args.hidden} in bf16."
    )


def table(ways: dict[str, Way], measured: list[dict[str, Any]], per_node: int) -> list[str]:
    """One row a way, beside the first."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"{'|---' * len(COLUMNS)}|"]
    first: list[float] = []
    for name, way in ways.items():
        rounds = [one[name] for one in measured]
        sent = sum(one["bytes"] for rank in rounds[::per_node] for one in rank)
        busiest, _ = links([[one["copies_N"] for one in rank] for rank in rounds], per_node)
        comm, step = sum(spans_ms(rounds, "comm")), sum(spans_ms(rounds, "step"))
        tokens = way.predicted.num_tokens
        rank_T = np.concatenate([block.request_T for block in open_trace(way.trace).blocks()]) % len(measured)
        load_N = np.bincount(rank_T // per_node)
        values = [sent, busiest, comm, step]
        first = first or values
        share = [f"{one / plain:.3f}" for one, plain in zip(values, first, strict=True)]
        cells = [
            name,
            f"{way.predicted_bytes / 1e6:.1f}",
            f"{sent / 1e6:.1f}",
            f"{sent / way.predicted_bytes:.4f}",
            share[0],
            f"{load_N.max() / load_N.mean():.3f}",
            share[1],
            f"{comm / 1e3:.2f}",
            share[2],
            f"{step / tokens:.3f}",
            share[3],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
