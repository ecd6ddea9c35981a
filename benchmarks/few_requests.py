"""What few requests cost: the price of imbalance by the number of requests, and whether learning curves are right.

`few_requests.py weights|curve TRACE NODES GPUS [REDUNDANT ...]`. Of every split, 30% of the requests judge; maps are
fitted to growing numbers of the others, on LAYERS layers of the trace, spread evenly. `weights` fits them at several
balance weights. `curve` fits each number and twice as many at the default weight, beside what the curve said before.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from machine import describe_machine, input_trace, run_script

from placement import Cluster, Options, Trace, open_trace
from placement.core.choices import BALANCE_WEIGHT
from placement.cost.evaluation import evaluate
from placement.pipeline.learning_curve import doubling
from placement.pipeline.solve_layers import solve_workload
from placement.support.parallel import make_executor
from placement.traces.split import held_out
from placement.traces.storage.shard_writer import TokenPiece
from placement.traces.write import write_trace
from placement.workload.count import count

LAYERS = 6
WEIGHTS = (0.75, BALANCE_WEIGHT, 2.5, 4.0)
SEEDS = (100, 101, 102)
JUDGES = 0.3
FEWEST = 4

Figures = npt.NDArray[np.float64]  # sends, imbalance


def of_few_layers(trace: Trace, folder: Path) -> Trace:
    """The trace with LAYERS of its layers."""
    model = trace.model
    keep = np.linspace(0, model.num_layers - 1, min(LAYERS, model.num_layers)).astype(np.int64)

    def pieces() -> Iterator[TokenPiece]:
        for block in trace.blocks():
            yield TokenPiece(
                ids_LTK=np.stack([block.ids_TK(layer) for layer in keep.tolist()]),
                request_T=block.request_T,
                position_T=block.column_T("position"),
                phase_T=block.column_T("phase"),
            )

    few = replace(model, layer_ids=tuple(model.layer_ids[layer] for layer in keep.tolist()))
    write_trace(folder, pieces(), model=few, requests=trace.requests)
    return open_trace(folder)


def nested(trace: Trace, seed: int) -> Iterator[tuple[int, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]]:
    """Growing numbers of requests to fit, each twice the one before, which it has in it; and those that judge."""
    judge_Q = held_out(trace, JUDGES, seed)
    pool = np.random.default_rng(seed).permutation(np.flatnonzero(~judge_Q & (trace.tokens_Q() > 0)))
    size = FEWEST
    while size <= len(pool):
        mine_Q = np.zeros(len(judge_Q), dtype=bool)
        mine_Q[pool[:size]] = True
        yield size, mine_Q, judge_Q
        size *= 2


def figures(
    trace: Trace,
    mine_Q: npt.NDArray[np.bool_],
    judge_Q: npt.NDArray[np.bool_],
    cluster: Cluster,
    weight: float,
    seed: int,
    executor: Executor,
) -> Figures:
    """What the map that is fitted to some requests costs on others."""
    options = Options(solver="anneal", balance_weight=weight, bound="none", seed=seed)
    workload = count(trace.select(mine_Q), seed=seed, executor=executor)
    maps, _ = solve_workload(workload, cluster, options, executor=executor)
    (one,) = evaluate(trace.select(judge_Q), [maps["anneal"]], cluster=cluster)
    return np.array([one.sends_L.mean(), one.rank_imbalance_L().mean()])


def weights(few: Trace, cluster: Cluster, redundant: int, executor: Executor) -> None:
    found: dict[tuple[int, float], list[Figures]] = defaultdict(list)
    for seed in SEEDS:
        for size, mine_Q, judge_Q in nested(few, seed):
            for weight in WEIGHTS:
                found[size, weight].append(figures(few, mine_Q, judge_Q, cluster, weight, seed, executor))
    for (size, weight), rows in found.items():
        sends, imbalance = np.mean(rows, axis=0)
        print(f"| {redundant} | {size} | {weight} | {sends:.3f} | {imbalance:.3f} | {sends + 1.5 * imbalance:.3f} |")


def curve(few: Trace, whole: Trace, cluster: Cluster, redundant: int, executor: Executor) -> None:
    fitted: dict[int, list[Figures]] = defaultdict(list)
    said: dict[int, list[tuple[float, ...]]] = defaultdict(list)
    for seed in SEEDS:
        for size, mine_Q, judge_Q in nested(few, seed):
            fitted[size].append(figures(few, mine_Q, judge_Q, cluster, BALANCE_WEIGHT, seed, executor))
            options = Options(seed=seed)
            twice = doubling(count(whole.select(mine_Q), seed=seed, executor=executor), cluster, options, executor)
            if twice is not None and twice.sends is not None:
                said[size].append((*twice.sends, *twice.imbalance))
    for size, rows in said.items():
        least, most, flat, steep = np.mean(rows, axis=0)
        gain_S2 = (
            np.subtract(fitted[size], fitted[2 * size]) if 2 * size in fitted else np.full((len(SEEDS), 2), np.nan)
        )
        (sends, imbalance), (sends_sd, imbalance_sd) = gain_S2.mean(axis=0), gain_S2.std(axis=0, ddof=1)
        print(
            f"| {redundant} | {size} | {sends:.3f} ± {sends_sd:.3f} | {least:.3f} to {most:.3f} | "
            f"{imbalance:.3f} ± {imbalance_sd:.3f} | {flat:.3f} to {steep:.3f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("weights", "curve"))
    parser.add_argument("trace", type=input_trace, help="folder of a real expert-trace/1")
    parser.add_argument("nodes", type=int)
    parser.add_argument("gpus", type=int, help="of a node")
    parser.add_argument("redundant", type=int, nargs="*", default=[0], help="redundant experts of a layer")
    given = parser.parse_args()
    whole = open_trace(given.trace)
    print(f"# {whole.model.name} on {given.nodes} nodes x {given.gpus} GPUs\n\n{describe_machine()}, seeds {SEEDS}\n")
    if given.what == "weights":
        heads = ("redundant", "requests", "weight", "sends", "imbalance", "sends + 1.5 x imbalance")
    else:
        heads = ("redundant", "requests", "twice as many: fewer sends", "said", "less imbalance", "said")
    print(f"| {' | '.join(heads)} |\n" + "|---" * len(heads) + "|")
    with tempfile.TemporaryDirectory() as folder, make_executor(None) as executor:
        few = of_few_layers(whole, Path(folder))
        for redundant in given.redundant:
            shape = {"num_nodes": given.nodes, "gpus_per_node": given.gpus, "redundant_experts": redundant}
            cluster = Cluster.fit(whole.model.num_experts, **shape)
            if given.what == "weights":
                weights(few, cluster, redundant, executor)
            else:
                curve(few, whole, cluster, redundant, executor)


if __name__ == "__main__":
    run_script(main)
