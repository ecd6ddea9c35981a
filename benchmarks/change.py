"""What few moves keep of a full re-placement when the workload shifts to other domains of a real trace.

A map is fitted on some domains. Then come requests of the others: 70% of them are fitted, 30% held out. The gain of a
re-placement without a limit is 100%; shown is what is left of it under a budget of moves.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

import numpy as np
import numpy.typing as npt
from machine import describe_machine, input_trace, run_script

from placement import Cluster, Options, Trace, count, evaluate, open_trace, solve
from placement.pipeline.layer_answer import solve_layer
from placement.pipeline.move_budget import spend
from placement.pipeline.move_front import LayerInUse, Point
from placement.solvers.layer_problems import layer_problem
from placement.support.parallel import make_executor, run_tasks
from placement.traces.split import split_requests

NODES, GPUS = 4, 2
BUDGETS = (0.05, 0.10, 0.20, 0.50)
HOLDOUT = 0.3
FEWEST_REQUESTS = 20
RUNS = ((0, 1.5), (8, 1.5), (0, 0.0))  # redundant experts, balance weight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=input_trace, help="folder of a real expert-trace/1 with domains; none is shipped")
    trace = open_trace(parser.parse_args().trace)
    print(f"# {trace.model.name}: what few moves keep of a full re-placement\n")
    print(f"{describe_machine()}; {NODES} nodes x {GPUS} GPUs, {HOLDOUT:.0%} of the new requests held out\n")
    print(
        "Objective: sends + weight x rank imbalance of the held-out requests, mean over layers. Shares: held out",
        end="",
    )
    print(" (training).\n")
    budgets = " | ".join(f"{share:.0%} of slots" for share in BUDGETS)
    print(f"| redundant | weight | fitted on -> comes | moves, no limit | objective, current -> no limit | {budgets} |")
    print(f"|---|---|---|---|---|{'---|' * len(BUDGETS)}")
    for redundant, weight in RUNS:
        options = Options(bound="none", balance_weight=weight)
        tried = splits(trace)[1::2] if redundant else splits(trace)  # copies make it slow
        rows = [row(trace, old, name, redundant, options) for name, old in tried]
        cells = " | ".join(shares(*map(mean, zip(*column, strict=True))) for column in zip(*rows, strict=True))
        print(f"| {redundant} | {weight} | mean | | | {cells} |", flush=True)


def splits(trace: Trace) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """Requests that the current map is fitted on: each family of domains, and all but that family."""
    family_Q = np.array([(request.domain or "").split("_")[0] for request in trace.requests])
    names, sizes = np.unique(family_Q, return_counts=True)
    found = []
    for name in names[sizes >= FEWEST_REQUESTS].tolist():
        found += [(f"{name} -> others", family_Q == name), (f"others -> {name}", family_Q != name)]
    return found


def row(
    trace: Trace, old_Q: npt.NDArray[np.bool_], name: str, redundant: int, options: Options
) -> list[tuple[float, float]]:
    """Print the row of one split; returns the shares (held out, training) that every budget keeps."""
    model = trace.model
    cluster = Cluster.fit(model.num_experts, num_nodes=NODES, gpus_per_node=GPUS, redundant_experts=redundant)
    current = solve(trace.select(old_Q), cluster, options, holdout=0).placement
    train, held_out = split_requests(trace.select(~old_Q), HOLDOUT, options.seed)
    slots = model.num_layers * cluster.num_slots
    with make_executor(None) as executor:
        workload = count(train, executor=executor)

        def front_of(layer: int) -> list[Point]:
            problem = layer_problem(workload, cluster, replace(options, max_moves=slots), layer)
            now = LayerInUse.of(current.phy2log_LP[layer], cluster, model.num_experts)
            return solve_layer(problem, model.layer_ids[layer], now).points

        # what `solve` does, but once for all budgets
        fronts = run_tasks(front_of, range(model.num_layers), executor)
    chosen = [spend(fronts, budget) for budget in (0, *(int(share * slots) for share in BUDGETS), None)]
    maps = [replace(current, phy2log_LP=np.stack([point.phy2log_P for point in points])) for points in chosen]
    answers = evaluate(held_out, maps, cluster=cluster)
    test = [float(one.sends_L.mean() + options.balance_weight * one.rank_imbalance_L().mean()) for one in answers]
    training = [mean(point.score.objective for point in points) for points in chosen]
    kept = list(zip(kept_of(test), kept_of(training), strict=True))
    moves = sum(point.moves for point in chosen[-1])
    print(f"| {redundant} | {options.balance_weight} | {name} | {moves / slots:.0%} ", end="")
    print(f"| {test[0]:.3f} -> {test[-1]:.3f} | {' | '.join(shares(*pair) for pair in kept)} |", flush=True)
    return kept


def kept_of(values: Sequence[float]) -> list[float]:
    """Gain under each budget over the gain without one; the first value is that of the current map."""
    return [(values[0] - value) / (values[0] - values[-1]) for value in values[1:-1]]


def shares(held_out: float, training: float) -> str:
    return f"{held_out:.0%} ({training:.0%})"


if __name__ == "__main__":
    run_script(main)
