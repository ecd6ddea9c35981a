"""Our solver and its peers on the same traces, splits and evaluator: a table and a plot.

python benchmarks/peers/run.py [TRACES...] [--nodes 4 --gpus-per-node 2 --redundant-experts 0 8 --seeds 100 101 ...]
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import numpy as np
from apart import Place, answers
from families import PEERS
from machine import input_trace, output_folder, run_script
from plot import draw_all
from table import Measured, Row, load, report

from placement import Cluster, Options, Placement, Trace, count, evaluate, open_trace
from placement.solvers import get_solver
from placement.solvers.layer_problems import layer_problem
from placement.solvers.problem import LayerProblem
from placement.support.parallel import make_executor
from placement.traces.split import split_requests
from placement.traces.synth import write_synthetic
from placement.traces.synthetic.presets import TraceShape, preset

# what ours counts besides sends
OUR_OPTIONS = {
    f"ours, weight {weight:g}": {"balance_weight": weight}
    for weight in (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 4.0, 10.0)
} | {
    f"ours, weight {weight:g}, all links alike": {"balance_weight": weight, "busy_share": 0.0}
    for weight in (0.0, 0.05, 0.1)
}
HOLDOUT = 0.3
LIMIT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A trace, and the cluster to place it on."""

    title: str
    trace: Trace
    nodes: int
    gpus: int
    redundant: int


def ours(problem: LayerProblem, counted: dict[str, float]) -> np.ndarray:
    options = replace(problem.options, **counted)
    return get_solver("auto").solve_layer(replace(problem, options=options)).phy2log_P


def methods_of(redundant: int, wanted: str) -> tuple[list[tuple[str, Place]], list[str]]:
    """Ours and the peers that can run, and why others cannot."""
    methods: list[tuple[str, Place]] = [(name, partial(ours, counted=counted)) for name, counted in OUR_OPTIONS.items()]
    skipped = []
    for peer in PEERS:
        if peer.package is not None and importlib.util.find_spec(peer.package) is None:
            skipped.append(f"{peer.name}: package {peer.package} is not installed (pip install --group peers)")
        elif redundant or not peer.needs_redundant:
            methods.append((peer.name, peer.place))
    return [method for method in methods if re.search(wanted, method[0])], skipped


def measure(case: Case, seed: int, jobs: int, wanted: str) -> tuple[list[Row], list[str]]:
    """All methods on one split, held out; and what was not run and why."""
    model = case.trace.model
    cluster = Cluster.fit(
        model.num_experts, num_nodes=case.nodes, gpus_per_node=case.gpus, redundant_experts=case.redundant
    )
    methods, skipped = methods_of(case.redundant, wanted)
    train, held_out = split_requests(case.trace, HOLDOUT, seed)
    workload = count(train, seed=seed)
    options = Options(seed=seed, bound="none")
    problems = [layer_problem(workload, cluster, options, layer) for layer in range(model.num_layers)]
    ours(problems[0], OUR_OPTIONS["ours, weight 0"])  # compiles
    found = answers([place for _, place in methods], problems, jobs, LIMIT_S)
    done = {name: answer for (name, _), answer in zip(methods, found, strict=True) if answer.phy2log_LP is not None}
    skipped += [
        f"{case.title}, split {seed}, {name}: {answer.fault}"
        for (name, _), answer in zip(methods, found, strict=True)
        if answer.fault is not None
    ]
    placements = [
        Placement(
            model=model,
            num_nodes=cluster.num_nodes,
            gpus_per_node=cluster.gpus_per_node,
            slots_per_gpu=cluster.slots_per_gpu,
            phy2log_LP=answer.phy2log_LP,
        )
        for answer in done.values()
    ]
    with make_executor(jobs) as executor:
        evaluations = evaluate(held_out, placements, cluster=cluster, executor=executor)
    rows = []
    for (name, answer), evaluation in zip(done.items(), evaluations, strict=True):
        one = Measured(
            seed=seed,
            sends=float(evaluation.node_sends_L.mean()),
            imbalance=float(evaluation.rank_imbalance_L().mean()),
            worst=float(evaluation.rank_imbalance_L().max()),
            seconds=answer.seconds,
            peak_bytes=answer.peak_bytes,
        )
        rows.append(Row(case=case.title, name=name, splits=(one,)))
    print(f"{case.title}: split {seed} done", file=sys.stderr)
    return rows, skipped


def synthetic(folder: str) -> Iterator[tuple[str, Trace, int, int, int]]:
    """Title, trace, nodes, GPUs a node, redundant experts."""
    shapes: list[tuple[str, TraceShape, int, int]] = [
        ("olmoe", preset("olmoe"), 4, 16),
        ("qwen3-235b", preset("qwen3-235b"), 8, 32),
        ("deepseek-v3", preset("deepseek-v3"), 8, 32),
        ("deepseek-v3 without groups", preset("deepseek-v3").without_group_limit(), 8, 32),
    ]
    for title, shape, gpus, redundant in shapes:
        few = replace(
            shape, model=replace(shape.model, layer_ids=shape.model.layer_ids[:: len(shape.model.layer_ids) // 2][:2])
        )
        path = Path(folder) / title.replace(" ", "-")
        write_synthetic(path, few, num_tokens=40_000, num_requests=300, seed=1)
        for spare in (0, redundant):
            yield f"{title} (synthetic)", open_trace(path), 4, gpus, spare


def cases(given: argparse.Namespace, folder: str) -> Iterator[Case]:
    found = [
        (open_trace(path), given.nodes, given.gpus_per_node, redundant)
        for path in given.traces
        for redundant in given.redundant_experts
    ]
    named = [(trace.model.name, trace, nodes, gpus, spare) for trace, nodes, gpus, spare in found]
    if not given.no_synthetic:
        named += list(synthetic(folder))
    for name, trace, nodes, gpus, spare in named:
        title = f"{name}, {nodes} x {gpus} GPUs, {spare} redundant experts"
        yield Case(title=title, trace=trace, nodes=nodes, gpus=gpus, redundant=spare)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("traces", nargs="*", type=input_trace, help="folders of expert-trace/1, beside synthetic ones")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--gpus-per-node", type=int, default=2)
    parser.add_argument("--redundant-experts", type=int, nargs="+", default=[0, 8])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(100, 105)), help="of the splits")
    parser.add_argument("--no-synthetic", action="store_true")
    parser.add_argument("--only", default="", help="only cases whose title contains this")
    parser.add_argument("--methods", default="", help="only methods whose name has this pattern")
    parser.add_argument("--jobs", type=int, default=1, help="methods side by side; more disturb the times")
    parser.add_argument("-o", "--out", type=output_folder, default=Path(__file__).parents[1] / "results")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    stem = given.out / f"{datetime.datetime.now(tz=datetime.UTC).date()}-peers"
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(given, folder):
            if given.only in case.title:
                for seed in given.seeds:
                    rows, skipped = keep(stem.with_suffix(".json"), *measure(case, seed, given.jobs, given.methods))
                    stem.with_suffix(".md").write_text(report(rows, skipped))
                    draw_all(rows, stem)


def keep(path: Path, rows: list[Row], skipped: list[str]) -> tuple[list[Row], list[str]]:
    """Add a split's figures to those of the file, in place of its earlier ones: all rows and reasons of the file."""
    kept, kept_skipped = load(path) if path.exists() else ([], [])
    merged = {(row.case, row.name): {one.seed: one for one in row.splits} for row in kept}
    for row in rows:
        merged.setdefault((row.case, row.name), {}).update({one.seed: one for one in row.splits})
    order = list(OUR_OPTIONS)
    rows = [
        Row(case=case, name=name, splits=tuple(splits[seed] for seed in sorted(splits)))
        for (case, name), splits in merged.items()
    ]
    rows.sort(key=lambda row: order.index(row.name) if row.name in order else len(order))
    skipped = list(dict.fromkeys([*kept_skipped, *skipped]))
    path.write_text(json.dumps({"skipped": skipped, "rows": [asdict(row) for row in rows]}, indent=0) + "\n")
    return rows, skipped


if __name__ == "__main__":
    run_script(main)
