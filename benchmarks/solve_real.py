"""Held-out gain on a real trace: mean over five splits by request, with and without redundant experts."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import mean, stdev

from machine import describe_machine

from placement import Cluster, Options, open_trace, solve

SEEDS = range(5)
HOLDOUT = 0.3
NODES, GPUS = 4, 2


def main() -> None:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).exists():
        raise SystemExit("skipped: give the folder of a real expert-trace/1; none is shipped with the project")
    trace = open_trace(sys.argv[1])
    model = trace.model
    print(f"# {model.name}: {model.num_layers} layers, {model.num_experts} experts, top-{model.top_k}\n")
    print(f"{describe_machine()}; split seeds {list(SEEDS)}, {HOLDOUT:.0%} of the requests held out, ", end="")
    print(f"{NODES} nodes x {GPUS} GPUs\n")
    print("| redundant | sends: linear | eplb | auto | auto / eplb | rank imbalance: eplb | auto minus eplb | wall s |")
    print("|---|---|---|---|---|---|---|---|")
    for redundant in (0, 8):
        rows = []
        for seed in SEEDS:
            cluster = Cluster.fit(model.num_experts, num_nodes=NODES, gpus_per_node=GPUS, redundant_experts=redundant)
            start = time.perf_counter()
            held_out = solve(trace, cluster, Options(seed=seed), holdout=HOLDOUT).held_out
            seconds = time.perf_counter() - start
            sends = [float(held_out[name].node_sends_L.mean()) for name in ("linear", "eplb", "auto")]
            uneven = [float(held_out[name].rank_imbalance_L().mean()) for name in ("eplb", "auto")]
            rows.append((*sends, sends[2] / sends[1], uneven[0], uneven[1] - uneven[0], seconds))
        cells = [f"{mean(column):.3f} ± {stdev(column):.3f}" for column in zip(*rows, strict=True)]
        print(f"| {redundant} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
