"""Maps solved for each replica choice, judged under each: has any rule a better map under another rule's name?

    python benchmarks/engine_rules.py TRACE [--nodes 4] [--gpus-per-node 2] [--redundant-experts 8] [--rules NAME ...]

One split; sends per token at rank imbalance, means over layers, held out. In each row the map with the lowest sends
plus `balance_weight` times imbalance is bold.
"""

from __future__ import annotations

import argparse
import time

from machine import describe_machine, input_trace, run_script

from placement import Cluster, Options, Placement, evaluate, open_trace, solve
from placement.core.choices import BALANCE_WEIGHT
from placement.cost.choices import REPLICA_CHOICES
from placement.traces.split import split_requests

SEED, HOLDOUT, PEER = 100, 0.3, "eplb"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=input_trace, help="folder of a real trace")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--gpus-per-node", type=int, default=2)
    parser.add_argument("--redundant-experts", type=int, default=8)
    parser.add_argument("--rules", nargs="+", default=list(REPLICA_CHOICES), choices=list(REPLICA_CHOICES))
    given = parser.parse_args()
    trace = open_trace(given.trace)
    shape = {"num_nodes": given.nodes, "gpus_per_node": given.gpus_per_node}
    cluster = Cluster.fit(trace.model.num_experts, **shape, redundant_experts=given.redundant_experts)
    maps: dict[str, Placement] = {}
    cpu_s = []
    for rule in given.rules:
        begun = time.process_time()
        options = Options(replica_choice=rule, seed=SEED, bound="none")
        solution = solve(trace, cluster, options, holdout=HOLDOUT, workers=1)
        cpu_s.append(f"{rule} {time.process_time() - begun:.1f}")
        maps |= {rule: solution.placement, PEER: maps.get(PEER, solution.maps[PEER])}
    print(f"# Maps for the rule of an engine\n\n{describe_machine()}; split seed {SEED}, {HOLDOUT} held out.")
    size = f"{given.nodes} nodes of {given.gpus_per_node} GPUs, {given.redundant_experts} redundant experts"
    print(f"{trace.model.name}, {size}. CPU seconds of each solve: {', '.join(cpu_s)}.\n")
    print(f"| judged under | {' | '.join(f'for `{name}`' for name in maps)} |\n|{'---|' * (len(maps) + 1)}")
    held_out = split_requests(trace, HOLDOUT, SEED)[1]
    for rule in given.rules:
        answers = evaluate(held_out, list(maps.values()), cluster=cluster, replica_choice=rule)
        pairs = [(float(one.sends_L.mean()), float(one.rank_imbalance_L().mean())) for one in answers]
        costs = [sends + BALANCE_WEIGHT * imbalance for sends, imbalance in pairs]
        cells = [
            f"{'**' * (cost == min(costs))}{sends:.3f} @{imbalance:.3f}{'**' * (cost == min(costs))}"
            for (sends, imbalance), cost in zip(pairs, costs, strict=True)
        ]
        print(f"| `{rule}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    run_script(main)
