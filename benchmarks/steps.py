"""What maps cost in steps of few tokens, beside a uniform router, and the speed of the replay.

    python benchmarks/steps.py [--data FOLDER] [--only TEXT ...] [--measure table choices speed]

`table`: linear, eplb and the default solver, fitted on a part of the requests, on these and on the others. `choices`:
the default solver's map with redundant experts under our replica choices, on the others. `speed`: assignments a second
on one core, without copies and with them, by replica choice.
FOLDER holds real traces (expert-trace/1) by name; none is shipped, and rows without their trace are skipped.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from machine import describe_machine, input_folder, run_script

from placement import Cluster, Model, Options, Placement, StepCost, Trace, evaluate_steps, open_trace, solve
from placement.core.choices import REPLICA_CHOICE
from placement.cost.choices import REPLICA_CHOICES
from placement.traces.format import RequestEntry
from placement.traces.split import split_requests
from placement.traces.storage.shard_writer import TokenPiece
from placement.traces.write import write_trace

SEED = 100
MEASURES = ("table", "choices", "speed")
FEW_NODES = ("min-nodes", "min-nodes-balanced", "min-nodes-step")
SPEED_TOKENS, SPEED_LAYERS, SIZES = 1_000_000, 4, (16, 64, 256, 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A trace of which each `every`-th layer is taken, the cluster, and the share of the requests that is held out."""

    trace: str
    every: int
    nodes: int
    gpus: int
    sizes: tuple[int, ...]
    holdout: float

    @property
    def name(self) -> str:
        return f"{self.trace}, {self.nodes} x {self.gpus}"

    def cluster(self, trace: Trace) -> Cluster:
        return Cluster.fit(trace.model.num_experts, num_nodes=self.nodes, gpus_per_node=self.gpus, redundant_experts=0)


ROWS = (
    Row(trace="glm52_16", every=5, nodes=4, gpus=8, sizes=(1, 4, 16, 64), holdout=0.5),
    Row(trace="gptoss20b", every=1, nodes=4, gpus=2, sizes=(1, 4, 16, 64, 256, 1024), holdout=0.3),
)


def some_layers(trace: Trace, every: int, folder: Path) -> Trace:
    """A copy with each `every`-th layer."""
    layers = range(0, trace.model.num_layers, every)

    def pieces() -> Iterator[TokenPiece]:
        for block in trace.blocks():
            yield TokenPiece(
                ids_LTK=np.stack([block.ids_TK(layer) for layer in layers]),
                request_T=block.request_T,
                position_T=block.column_T("position"),
                phase_T=block.column_T("phase"),
            )

    model = replace(trace.model, layer_ids=tuple(trace.model.layer_ids[layer] for layer in layers))
    folder.mkdir()
    write_trace(folder, pieces(), model=model, requests=trace.requests)
    return open_trace(folder)


def fitted(train: Trace, cluster: Cluster, options: Options) -> dict[str, Placement]:
    """`linear`, `eplb` and `auto`."""
    return solve(train, cluster, options, holdout=0, workers=1).maps


def table(row: Row, trace: Trace) -> None:
    """The figures of every size on both sides of one split."""
    cluster = row.cluster(trace)
    sides = dict(zip(("fitted", "held out"), split_requests(trace, row.holdout, SEED), strict=True))
    maps = fitted(sides["fitted"], cluster, Options(seed=SEED, bound="none"))
    print(f"\n### {row.name}: {trace.model.num_layers} layers, {row.holdout:.0%} of the requests held out\n")
    print("| requests | tokens a GPU | steps | map | busiest GPU | p99 | busiest link | p99 | sends | step µs | p99 |")
    print(f"|{'---|' * 11}")
    for side, tokens in sides.items():
        full = int(tokens.tokens_Q().sum()) // cluster.num_ranks
        sizes = [size for size in row.sizes if size <= full]
        costs = evaluate_steps(tokens, list(maps.values()), step_tokens=sizes, cluster=cluster)
        for name, rows in zip(maps, costs, strict=True):
            for one in rows:
                print(line(side, one, name))
        for one in costs[0]:
            print(line(side, one, "uniform router"))


def choices(row: Row, trace: Trace) -> None:
    """The default map with redundant experts, on held-out requests, under the choices that look for few nodes."""
    cluster = replace(row.cluster(trace), slots_per_gpu=row.cluster(trace).slots_per_gpu + 1)
    train, held_out = split_requests(trace, row.holdout, SEED)
    placement = fitted(train, cluster, Options(seed=SEED, bound="none"))["auto"]
    full = int(held_out.tokens_Q().sum()) // cluster.num_ranks
    sizes = [size for size in row.sizes if size <= full]
    print(f"\n### {row.name}, {placement.num_redundant} redundant experts\n")
    print(
        "| replica choice | tokens a GPU | steps | busiest GPU | p99 | best split | uniform router, no copies | sends |"
    )
    print(f"|{'---|' * 8}")
    for name in FEW_NODES:
        (costs,) = evaluate_steps(held_out, [placement], step_tokens=sizes, cluster=cluster, replica_choice=name)
        for one in costs:
            if one.figures is not None:
                gpu, best, chance = one.figures.busiest_gpu, one.figures.best_split, one.uniform.busiest_gpu
                cells = [f"{figure:.3f}" for figure in (gpu.mean, gpu.p99, best.mean, chance.mean)]
                cells = [name, f"{one.tokens_per_gpu}", f"{one.steps}", *cells, f"{one.figures.sends.mean:.3f}"]
                print(f"| {' | '.join(cells)} |", flush=True)


def line(side: str, one: StepCost, name: str) -> str:
    figures = one.uniform if name == "uniform router" else one.figures
    assert figures is not None
    gpu, link, sends, step = figures.busiest_gpu, figures.busiest_link, figures.sends, figures.step_us
    pairs = f"{gpu.mean:.3f} | {gpu.p99:.3f} | {link.mean:.3f} | {link.p99:.3f}"
    where = f"{side} | {one.tokens_per_gpu} | {one.steps} | {name}"
    return f"| {where} | {pairs} | {sends.mean:.3f} | {step.mean:,.0f} | {step.p99:,.0f} |"


def speed() -> None:
    """Of the second replay of a random trace: the first one compiles, and draws for the uniform router."""
    rng = np.random.default_rng(0)
    print(f"\n## Speed\n\n{SPEED_TOKENS:,} tokens, {SPEED_LAYERS} layers, top-8 of 256 experts, 4 x 8, sizes {SIZES}\n")
    print("| redundant experts | replica choice | million assignments a CPU second |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as room:
        base = Cluster.fit(256, num_nodes=4, gpus_per_node=8, redundant_experts=0)
        trace = random_trace(rng, Path(room) / "random")
        for redundant in (0, 32):
            cluster = replace(base, slots_per_gpu=8 + redundant // 32)
            row_P = np.arange(cluster.num_slots, dtype=np.int32) % 256
            placed = Placement(model=trace.model, **cluster.sizes(), phy2log_LP=np.tile(row_P, (SPEED_LAYERS, 1)))
            for choice in REPLICA_CHOICES if redundant else (REPLICA_CHOICE,):
                for _ in range(2):
                    start = time.process_time()
                    evaluate_steps(trace, [placed], step_tokens=SIZES, cluster=cluster, replica_choice=choice)
                    seconds = time.process_time() - start
                rate = SPEED_TOKENS * SPEED_LAYERS * 8 / seconds / 1e6
                print(f"| {redundant} | {choice} | {rate:.1f} |", flush=True)


def random_trace(rng: np.random.Generator, folder: Path) -> Trace:
    """Sets that begin at a random expert and go on in steps of a random odd number."""
    model = Model(name="random", layer_ids=tuple(range(SPEED_LAYERS)), num_experts=256, top_k=8)

    def pieces() -> Iterator[TokenPiece]:
        for start in range(0, SPEED_TOKENS, 50_000):
            first = rng.integers(256, size=(SPEED_LAYERS, 50_000, 1))
            step = 2 * rng.integers(128, size=(SPEED_LAYERS, 50_000, 1)) + 1  # odd, so that no id comes twice
            yield TokenPiece(
                ids_LTK=((first + step * np.arange(8)) % 256).astype(np.uint8),
                request_T=(np.arange(start, start + 50_000) // 1000).astype(np.int32),
                position_T=(np.arange(50_000) % 1000).astype(np.int32),
                phase_T=np.ones(50_000, dtype=np.uint8),
            )

    folder.mkdir()
    requests = [RequestEntry(id=f"r{number}") for number in range(SPEED_TOKENS // 1000)]
    write_trace(folder, pieces(), model=model, requests=requests)
    return open_trace(folder)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=input_folder, help="folder of real traces")
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose name has one of these texts")
    parser.add_argument("--measure", nargs="+", choices=MEASURES, default=list(MEASURES))
    return parser.parse_args()


def main() -> None:
    given = arguments()
    print(f"# Steps\n\n{describe_machine()}")
    rows = [row for row in ROWS if any(text in row.name for text in given.only)]
    with tempfile.TemporaryDirectory() as room:
        traces: dict[Row, Trace] = {}
        for row in rows:
            if given.data is None or not (given.data / row.trace).exists():
                print(f"\n{row.name}: skipped, --data has no {row.trace}")
                continue
            whole = open_trace(given.data / row.trace)
            traces[row] = whole if row.every == 1 else some_layers(whole, row.every, Path(room) / row.trace)
        if "table" in given.measure:
            print("\n## Maps in steps")
            for row, trace in traces.items():
                table(row, trace)
        if "choices" in given.measure:
            print("\n## Replica choices in steps")
            for row, trace in traces.items():
                choices(row, trace)
        if "speed" in given.measure:
            speed()


if __name__ == "__main__":
    run_script(main)
