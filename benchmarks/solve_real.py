"""Held-out gain on a real trace: mean over splits by request, with and without redundant experts.

python benchmarks/solve_real.py TRACE [SEED ...]
"""

from __future__ import annotations

import time
from statistics import mean, stdev

from machine import describe_machine, run_script, trace_and_seeds

from placement import Cluster, Options, solve

SEEDS = range(100, 105)
HOLDOUT = 0.3
NODES, GPUS = 4, 2
CASES = ((0, "min-nodes"), (8, "min-nodes"), (8, "min-nodes-balanced"))
HEADER = (
    "redundant", "replica choice", "sends: linear", "eplb", "auto", "auto / eplb", "rank imbalance: eplb", "auto",
    "auto minus eplb", "worst layer: auto minus eplb", "wall s",
)  # fmt: skip


def main() -> None:
    trace, seeds = trace_and_seeds(__doc__, SEEDS)
    model = trace.model
    print(f"# {model.name}: {model.num_layers} layers, {model.num_experts} experts, top-{model.top_k}\n")
    print(f"{describe_machine()}; split seeds {seeds}, {HOLDOUT:.0%} of the requests held out, ", end="")
    print(f"{NODES} nodes x {GPUS} GPUs; means over layers, then over splits ± their spread\n")
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    for redundant, choice in CASES:
        cluster = Cluster.fit(model.num_experts, num_nodes=NODES, gpus_per_node=GPUS, redundant_experts=redundant)
        rows = []
        for seed in seeds:
            start = time.perf_counter()
            held_out = solve(trace, cluster, Options(seed=seed, replica_choice=choice), holdout=HOLDOUT).held_out
            seconds = time.perf_counter() - start
            sends = [float(held_out[name].node_sends_L.mean()) for name in ("linear", "eplb", "auto")]
            eplb_L, auto_L = (held_out[name].rank_imbalance_L() for name in ("eplb", "auto"))
            uneven = [float(one.mean()) for one in (eplb_L, auto_L)]
            worst = float(auto_L.max() - eplb_L.max())
            rows.append((*sends, sends[2] / sends[1], *uneven, uneven[1] - uneven[0], worst, seconds))
        spread = stdev if len(rows) > 1 else lambda _: 0.0
        cells = [f"{mean(column):.3f} ± {spread(column):.3f}" for column in zip(*rows, strict=True)]
        print(f"| {redundant} | {choice} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    run_script(main)
