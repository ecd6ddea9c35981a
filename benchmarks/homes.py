"""Homes from what is known of a request: its prompt, a few tokens, a quarter. Means over splits by request.

python benchmarks/homes.py TRACE [--texts TEXTS.npz] [--nodes 4] [--gpus-per-node 2] [--redundant 0 8] [--seeds 100 101]
    [--maps DIR] [--workers 1]

TEXTS.npz has the texts of a trace that has none: `token_ids`, `offsets` [Q + 1] and `prompt_tokens` [Q], in the order
of the trace's requests. All rows of a split have the same joint placement and are measured on the same tokens, those
after the first quarter of each held-out request. `--maps` keeps the placements for another run.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from machine import describe_machine, input_texts, input_trace, output_folder

from placement import Cluster, Options, Placement, Trace, open_trace
from placement.grouping.router_part import RouterPart
from placement.pipeline.grouped_solution import GroupedSolution
from placement.pipeline.with_homes import solve_grouped
from placement.traces.prompts import TokenLists, write_prompts
from placement.traces.storage.shard_writer import TokenPiece
from placement.traces.write import write_trace

HOLDOUT = 0.3
TODAY = "first quarter, as before"
HEADER = (
    "redundant",
    "homes from",
    "sends, grouped together",
    "share of the gain",
    "tokens per node",
    "sends, routed one by one",
    "share of the gain",
    "tokens per node",
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("trace", type=input_trace)
    parser.add_argument("--texts", type=input_texts)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--gpus-per-node", type=int, default=2)
    parser.add_argument("--redundant", type=int, nargs="*", default=[0, 8])
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=list(range(100, 105)), help="of the splits; two or more"
    )
    parser.add_argument("--maps", type=output_folder)
    parser.add_argument("--workers", type=int)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trace = open_trace(asked.trace)
        if asked.texts is not None:
            trace = with_tokens(trace, asked.texts, Path(folder))
        tell(trace, asked)


def tell(trace: Trace, asked: argparse.Namespace) -> None:
    model = trace.model
    print(f"# Homes: {model.name}, {model.num_layers} layers, {model.num_experts} experts, top-{model.top_k}\n")
    print(
        f"{describe_machine()}; split seeds {asked.seeds}, {HOLDOUT:.0%} of the requests held out, {asked.nodes} nodes"
    )
    print(f"x {asked.gpus_per_node} GPUs, joint placement; means over splits ± their spread.\n")
    print(
        "Sends per token and layer on the last three quarters of each held-out request. The share of the gain is that"
    )
    print(f"of the row *{TODAY}*, grouped together, beside random homes (*nothing*).\n")
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    for redundant in asked.redundant:
        rows: dict[str, list[tuple[float, ...]]] = {}
        sizes = []
        for seed in asked.seeds:
            grouped = solved(trace, asked, redundant, seed)
            last = grouped.gains[-1]
            router = last.homes.router
            part = RouterPart.of(router, keeps=1.0).predictor
            sizes.append(0 if part is None else len(part.model_dump_json()))
            for name, row in measured(grouped).items():
                rows.setdefault(name, []).append(row)
        for name, values in rows.items():
            cells = [f"{mean(column):.3f} ± {stdev(column):.3f}" for column in zip(*values, strict=True)]
            print(f"| {redundant} | {name} | {' | '.join(cells)} |", flush=True)
        print(f"\nThe predictor takes {max(sizes):,} bytes of a grouping file.\n", flush=True)


def measured(grouped: GroupedSolution) -> dict[str, tuple[float, ...]]:
    homes = grouped.homes
    random = homes.sources[0].grouped_sends if homes.sources else float(grouped.gains[-2].held_out.node_sends_L.mean())
    last = grouped.gains[-1]
    today = float(last.held_out.node_sends_L.mean()), grouped.held_out_balance(homes.held_out_Q)
    routed = float(last.routed.node_sends_L.mean()), grouped.held_out_balance(homes.routed_Q)

    def share(sends: float) -> float:
        return (random - sends) / (random - today[0])

    rows = {TODAY: (today[0], 1.0, today[1], routed[0], share(routed[0]), routed[1])}
    for one in homes.sources:
        rows[one.name] = (
            one.grouped_sends,
            share(one.grouped_sends),
            one.grouped_balance,
            one.routed_sends,
            share(one.routed_sends),
            one.routed_balance,
        )
    return rows


def solved(trace: Trace, asked: argparse.Namespace, redundant: int, seed: int) -> GroupedSolution:
    """The joint placement of a split with its homes; from `--maps` where it was solved before."""
    shape = {"num_nodes": asked.nodes, "gpus_per_node": asked.gpus_per_node}
    cluster = Cluster.fit(trace.model.num_experts, redundant_experts=redundant, **shape)
    kept = None if asked.maps is None else asked.maps / f"{trace.model.name}-{redundant}-{seed}.npy"
    if kept is None or not kept.exists():
        grouped = solve_grouped(trace, cluster, Options(seed=seed), holdout=HOLDOUT, workers=asked.workers)
        if kept is not None:
            kept.parent.mkdir(exist_ok=True)
            np.save(kept, grouped.solution.placement.phy2log_LP)
        return grouped
    rows = np.load(kept, allow_pickle=False)
    placement = Placement(model=trace.model, slots_per_gpu=cluster.slots_per_gpu, phy2log_LP=rows, **shape)
    return solve_grouped(
        trace, cluster, Options(seed=seed), placement=placement, holdout=HOLDOUT, workers=asked.workers
    )


def with_tokens(trace: Trace, path: Path, folder: Path) -> Trace:
    """The same trace with the ids of its tokens and its prompts."""
    texts = np.load(path, allow_pickle=False)
    token_P, begin_Q, prompt_Q = texts["token_ids"], texts["offsets"], texts["prompt_tokens"]
    layers = range(trace.model.num_layers)
    pieces = (
        TokenPiece(
            ids_LTK=np.stack([block.ids_TK(layer) for layer in layers]),
            request_T=block.request_T,
            position_T=block.column_T("position"),
            phase_T=block.column_T("phase"),
            token_T=token_P[begin_Q[block.request_T] + block.column_T("position")],
        )
        for block in trace.blocks()
    )
    write_trace(folder, pieces, model=trace.model, requests=trace.requests)
    prompts = [token_P[begin : begin + size] for begin, size in zip(begin_Q[:-1], prompt_Q, strict=True)]
    write_prompts(folder, TokenLists.of(np.concatenate(prompts), prompt_Q))
    return open_trace(folder)


if __name__ == "__main__":
    main()
