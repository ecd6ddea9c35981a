"""Which objective makes the shortest modelled steps, on held-out requests.

    python benchmarks/objectives.py --data FOLDER [--only TEXT ...] [--seeds N ...]

Maps of each objective are fitted to 70% of the requests, with the price of `time` at the network's own speed, and the
rest is replayed in steps of so many tokens a GPU on H200 GPUs (stated figures). Times are means over steps and splits.
FOLDER holds real traces (expert-trace/1) by name; none is shipped, and rows without their trace are skipped.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine, input_folder, run_script
from steps import some_layers

from placement import Cluster, Options, Placement, Trace, evaluate, evaluate_steps, open_trace, solve
from placement.documents.cluster_yaml import cluster_of
from placement.documents.known_cluster import known_cluster
from placement.documents.model_config import ModelSizes
from placement.traces.split import split_requests

HOLDOUT, GBPS = 0.3, (400.0, 100.0)
OBJECTIVES: dict[str, dict[str, Any]] = {
    f"{objective}{said}": {"objective": objective} | share
    for objective in ("locality", "time")
    for said, share in (("", {}), (", busy share 0", {"busy_share": 0.0}), (", busy share 1", {"busy_share": 1.0}))
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A trace of which each `every`-th layer is taken, what its model is like, and the cluster."""

    trace: str
    every: int
    model: ModelSizes
    nodes: int
    gpus: int
    redundant: int
    sizes: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.trace}, {self.nodes} x {self.gpus}, {self.redundant} redundant"

    def cluster(self) -> Cluster:
        file, _ = known_cluster(
            "h200",
            num_nodes=self.nodes,
            gpus_per_node=self.gpus,
            redundant_experts=self.redundant,
            sizes=self.model,
        )
        return cluster_of(file, self.model.num_experts)


GPT_OSS = ModelSizes(num_experts=32, top_k=4, hidden=2880, width=2880, weight_bits=4.25)
GLM = ModelSizes(num_experts=256, top_k=8, hidden=6144, width=2048, weight_bits=8.0)
ROWS = tuple(
    Row(trace=trace, every=every, model=model, nodes=4, gpus=gpus, redundant=redundant, sizes=sizes)
    for trace, every, model, gpus, copies, sizes in (
        ("gptoss20b", 1, GPT_OSS, 2, 8, (16, 64, 256)),
        ("glm52_16", 5, GLM, 8, 32, (1, 4, 16)),
    )
    for redundant in (0, copies)
)


def figures_of(row: Row, trace: Trace, seed: int) -> dict[tuple[float, str], list[float]]:
    """Of each speed of the network and map: busiest sends, sends, rank imbalance, and microseconds of each size."""
    held_out = split_requests(trace, HOLDOUT, seed)[1]
    maps: dict[str, Placement] = {}
    found = {}
    for gbps in GBPS:
        cluster = replace(row.cluster(), inter_gbps=gbps)
        for name, wanted in OBJECTIVES.items():
            if name in maps and wanted["objective"] == "locality":
                continue  # the speed of the network does not count
            options = Options(seed=seed, bound="none", **wanted)
            solved = solve(trace, cluster, options, holdout=HOLDOUT, workers=1).maps
            maps |= {"linear": solved["linear"], "eplb": solved["eplb"], name: solved["auto"]}
        answers = evaluate(held_out, list(maps.values()), cluster=cluster)
        steps = evaluate_steps(held_out, list(maps.values()), step_tokens=row.sizes, cluster=cluster)
        for name, answer, costs in zip(maps, answers, steps, strict=True):
            means = [answer.busiest_sends_L().mean(), answer.sends_L.mean(), answer.rank_imbalance_L().mean()]
            times = [one.figures.step_us.mean for one in costs if one.figures is not None]
            found[gbps, name] = [*map(float, means), *times]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=input_folder, required=True, help="folder of real traces")
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose name has one of these texts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102], help="of the splits and searches")
    given = parser.parse_args()
    print(f"# Objectives\n\n{describe_machine()}; means of splits {', '.join(map(str, given.seeds))}\n")
    with tempfile.TemporaryDirectory() as room:
        for number, row in enumerate(ROWS):
            if not any(text in row.name for text in given.only) or not (given.data / row.trace).exists():
                continue
            trace = open_trace(given.data / row.trace)
            trace = trace if row.every == 1 else some_layers(trace, row.every, Path(room) / str(number))
            of_seeds = [figures_of(row, trace, seed) for seed in given.seeds]
            print(f"\n## {row.name}\n\n| Gbit/s | objective | busiest sends | sends | rank imbalance ", end="")
            print("".join(f"| µs, {size} a GPU " for size in row.sizes) + f"|\n|{'---|' * (5 + len(row.sizes))}")
            for gbps, name in of_seeds[0]:
                mean = np.mean([one[gbps, name] for one in of_seeds], axis=0)
                default = np.mean([one[gbps, "locality"] for one in of_seeds], axis=0)
                times = [f"{us:,.0f} ({us / of - 1:+.1%})" for us, of in zip(mean[3:], default[3:], strict=True)]
                print(f"| {gbps:g} | {name} | {' | '.join(f'{one:.4f}' for one in mean[:3])} | {' | '.join(times)} |")


if __name__ == "__main__":
    run_script(main)
