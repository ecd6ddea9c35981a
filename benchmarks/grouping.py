"""Placement and grouping on a real trace, beside other ways to group: means over splits by request.

python benchmarks/grouping.py TRACE [SEED ...]

Homes of held-out requests are decided from the first quarter of each and measured on the rest. All rows have the same
splits and the same evaluator, and the baselines decide from the same counts.
"""

from __future__ import annotations

import time
from statistics import mean, stdev

from machine import describe_machine, run_script, trace_and_seeds
from other_groupings import counts_of, group_by_kmeans

from placement import Cluster, Evaluation, Options, Placement, Trace, evaluate
from placement.pipeline.grouped_solution import GroupedSolution
from placement.pipeline.with_homes import solve_grouped
from placement.solvers.linear import linear_map
from placement.traces.cut import cut_requests
from placement.traces.split import split_requests

SEEDS = range(100, 105)
HOLDOUT = 0.3
NODES, GPUS = 4, 2
LOCAL_WEIGHT = 0.5  # of imbalance, for a row with fewer sends than the default's
HEADER = ("redundant", "way", "sends", "of linear's", "rank imbalance minus eplb's", "tokens per node, max/mean")
Row = tuple[float, float, float, float]


def main() -> None:
    trace, seeds = trace_and_seeds(__doc__, SEEDS)
    model = trace.model
    print(f"# Grouping: {model.name}, {model.num_layers} layers, {model.num_experts} experts, top-{model.top_k}\n")
    print(f"{describe_machine()}; split seeds {seeds}, {HOLDOUT:.0%} of the requests held out, ", end="")
    print(f"{NODES} nodes x {GPUS} GPUs; means over layers, then over splits ± their spread.\n")
    print("Sends per token and layer on the last three quarters of each held-out request; its home is decided from the")
    print("first. *Linear's* is linear placement without redundant experts at random homes; *eplb's* has the redundant")
    print("experts of its row and random homes. All homes of a split are decided together, but where routed.\n")
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    for redundant in (0, 8):
        rows: dict[str, list[Row]] = {}
        seconds, gaps = [], []
        for seed in seeds:
            cluster = Cluster.fit(model.num_experts, num_nodes=NODES, gpus_per_node=GPUS, redundant_experts=redundant)
            start = time.perf_counter()
            grouped = solve_grouped(trace, cluster, Options(seed=seed), holdout=HOLDOUT)
            seconds.append(time.perf_counter() - start)
            gaps.append(grouped.homes.assignment.gap)
            local = solve_grouped(trace, cluster, Options(seed=seed, balance_weight=LOCAL_WEIGHT), holdout=HOLDOUT)
            for name, row in measure(trace, grouped, local, seed).items():
                rows.setdefault(name, []).append(row)
        for name, values in rows.items():
            spread = stdev if len(values) > 1 else lambda _: 0.0
            cells = [f"{mean(column):.3f} ± {spread(column):.3f}" for column in zip(*values, strict=True)]
            print(f"| {redundant} | {name} | {' | '.join(cells)} |", flush=True)
        print(
            f"\nLargest gap of the homes to their bound {max(gaps):.4%}; wall {mean(seconds):.1f} s a split.\n",
            flush=True,
        )


def measure(trace: Trace, grouped: GroupedSolution, local: GroupedSolution, seed: int) -> dict[str, Row]:
    train, held_out = split_requests(trace, HOLDOUT, seed)
    first, rest = cut_requests(held_out, grouped.home_from)
    model, requests, cluster = trace.model, grouped.requests, grouped.solution.cluster
    plain = Placement(
        model=model,
        num_nodes=NODES,
        gpus_per_node=GPUS,
        slots_per_gpu=model.num_experts // (NODES * GPUS),
        phy2log_LP=[linear_map(model.num_experts, model.num_experts)] * model.num_layers,
    )
    linear = float(evaluate(rest, [plain])[0].node_sends_L.mean())
    eplb = float(grouped.gain("eplb").held_out.rank_imbalance_L().mean())

    def row(answer: Evaluation, homes: object = None) -> Row:
        sends = float(answer.node_sends_L.mean())
        uneven = float(answer.rank_imbalance_L().mean()) - eplb
        return sends, sends / linear, uneven, 1.0 if homes is None else grouped.held_out_balance(homes)

    rows = {}
    for gain in grouped.gains:
        name, homes = gain.name.removesuffix(" + homes"), gain.homes
        said = "random homes" if homes is None else "grouped"
        rows[f"{name}, {said}"] = row(gain.held_out, None if homes is None else homes.held_out_Q)
    last = grouped.gains[-1]
    rows["joint, routed one by one"] = row(last.routed, last.homes.routed_Q)
    lighter = local.gains[-1]
    rows[f"joint, grouped, balance weight {LOCAL_WEIGHT}"] = row(lighter.held_out, lighter.homes.held_out_Q)
    past_QLE, new_QLE = counts_of(train, requests), counts_of(first, requests)
    for balanced, name in ((False, "k-means of load vectors (2604.23150)"), (True, "balanced k-means (after ELDR)")):
        other = group_by_kmeans(past_QLE, new_QLE, cluster, trace, seed, balanced=balanced)
        answer = evaluate(rest, [other.placement], home_Q=other.home_Q[requests.request_E])[0]
        rows[name] = row(answer, other.home_Q)
    return rows


if __name__ == "__main__":
    run_script(main)
