"""Captures given together as counts: the worst capture of a map for all, beside maps of their own and one of the sum.

    python benchmarks/captures.py TRACE:4x8:0,32 COUNTS.npz:4x1:0,4 --held-out TRACE:4x4:16

A trace is cut into captures by domain, a file with the array `subject` by its most frequent subjects. With `--pair`
the captures of a trace are joined into two, every second one. `alone`: each capture on a map of its own, the worst of
them. `sum`: the map of all tokens added. `solve`, `robust`: the two commands on the captures. `held out`: the worst
domain and all requests, 30% of them held out, by the map of the exact loads and by that of `--objective balance`.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
from machine import describe_machine, input_arrays, input_trace, run_script

from placement import Cluster, Options, count, open_trace, solve
from placement.core.model import Model
from placement.cost.evaluation import evaluate_counts
from placement.pipeline.captures import Capture, Captures
from placement.solvers.balancing.balance import balance_maps
from placement.traces.parts import parts_of
from placement.workload.counts_file import ExpertCounts

OPTIONS = Options(objective="balance", replica_choice="uniform")
SUBJECTS, TOP_K, SEEDS = 4, 2, range(5)
Counts = npt.NDArray[np.int64]
Case = tuple[str, str, int]  # path, nodes x GPUs, redundant experts


def captures_of(path: str) -> Iterator[tuple[str, ExpertCounts]]:
    """Totals of each domain of a trace, or of each subject of a file of fractions."""
    if path.endswith(".npz"):
        with np.load(path, allow_pickle=False) as file:
            subjects, frac = file["subject"], file["frac"].astype(np.float64)
        names, sizes = np.unique(subjects, return_counts=True)
        for name in names[np.argsort(-sizes, kind="stable")][:SUBJECTS]:
            total = np.rint(frac[subjects == name].sum(axis=0) * 1000).astype(np.int64)
            model = Model(name="m", layer_ids=tuple(range(len(total))), num_experts=total.shape[1], top_k=TOP_K)
            yield str(name), counts_of(model, total)
        return
    trace = open_trace(path)
    parts = parts_of(trace, "domain")
    for part, name in enumerate(parts.names):
        yield name, counts_of(trace.model, count(parts.of(trace, part)).load_LE)


def counts_of(model: Model, load_LE: Counts) -> ExpertCounts:
    return ExpertCounts(model=model, count_QLE=load_LE[None], unit=1.0, selected=np.arange(1))


def paired(found: dict[str, ExpertCounts]) -> dict[str, ExpertCounts]:
    """Two captures: the totals of every second one, and of the others."""
    names = list(found)
    return {" + ".join(half): _summed([found[name] for name in half]) for half in (names[::2], names[1::2])}


def _summed(captures: list[ExpertCounts]) -> ExpertCounts:
    return counts_of(captures[0].model, sum((one.load_LE() for one in captures), start=np.int64(0)))


def cluster_of(num_experts: int, shape: str, redundant: int) -> Cluster:
    nodes, gpus = map(int, shape.split("x"))
    return Cluster.fit(num_experts, num_nodes=nodes, gpus_per_node=gpus, redundant_experts=redundant)


def together(path: str, shape: str, redundant: int, *, pair: bool) -> str:
    """A row of the first table."""
    found = paired(dict(captures_of(path))) if pair else dict(captures_of(path))
    model = next(iter(found.values())).model
    cluster = cluster_of(model.num_experts, shape, redundant)
    given = Captures(captures=tuple(Capture(name=name, given=one) for name, one in found.items()))
    alone = [solve(one, cluster, OPTIONS).train["auto"].rank_imbalance_L().mean() for one in found.values()]
    of_sum = solve(_summed(list(found.values())), cluster, OPTIONS).placement
    worst_of_sum = max(
        evaluate_counts(one, [of_sum], cluster=cluster)[0].rank_imbalance_L().mean() for one in found.values()
    )
    begun = time.process_time()
    robust = solve(given, cluster, OPTIONS, robust="traces").parts
    seconds = time.process_time() - begun
    if robust is None:
        raise SystemExit(f"{path}: there are no captures")
    worst = {
        name: max(answers[name].rank_imbalance_L().mean() for answers in robust.train) for name in ("auto", "robust")
    }
    figures = (max(alone), worst_of_sum, worst["auto"], worst["robust"])
    bound = "none" if robust.bound is None else f"{robust.bound:.3f}"
    cells = [f"{value:.3f}" for value in figures]
    return (
        f"| {Path(path).stem}, {len(found)} | {shape} | {redundant} | {' | '.join(cells)} | {bound} | {seconds:.0f} |"
    )


def held_out(path: str, shape: str, redundant: int) -> str:
    """A row of the second table: means over seeds."""
    trace = open_trace(path)
    cluster, figures = cluster_of(trace.model.num_experts, shape, redundant), []
    for seed in SEEDS:
        options = Options(objective="balance", replica_choice="uniform", seed=seed, bound="none")
        solution = solve(trace, cluster, options, holdout=0.3, by_domain=True)
        parts, load_LP = solution.parts, solution.train["auto"].load_LP
        if parts is None:
            raise SystemExit(f"{path}: its requests have no domains")
        load_LE = np.zeros((trace.model.num_layers, trace.model.num_experts))
        for load_E, row, load_P in zip(load_LE, solution.placement.phy2log_LP, load_LP, strict=True):
            np.add.at(load_E, row, load_P)
        exact_LP = balance_maps(load_LE, cluster)
        rows = []
        for answers in (solution.held_out, *[one for one in parts.held_out if one]):
            answer = answers["auto"]
            load = np.zeros_like(load_LE)
            for load_E, row, load_P in zip(load, solution.placement.phy2log_LP, answer.load_LP, strict=True):
                np.add.at(load_E, row, load_P)
            each = [loads / np.bincount(row, minlength=len(loads)) for loads, row in zip(load, exact_LP, strict=True)]
            by_rank = np.array(
                [one[row].reshape(cluster.num_ranks, -1).sum(axis=1) for one, row in zip(each, exact_LP, strict=True)]
            )
            rows.append(
                (float((by_rank.max(axis=1) / by_rank.mean(axis=1)).mean()), float(answer.rank_imbalance_L().mean()))
            )
        exact, ours = zip(*rows, strict=True)
        figures.append((exact[0], max(exact[1:]), ours[0], max(ours[1:])))
    cells = [f"{value:.3f}" for value in np.mean(figures, axis=0)]
    return f"| {Path(path).stem} | {shape} | {redundant} | {' | '.join(cells)} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shape = "PATH:NxG:R,R"
    parser.add_argument(
        "given", type=input_case, nargs="+", metavar=shape, help="captures, nodes x GPUs, redundant experts"
    )
    parser.add_argument(
        "--held-out", type=input_trace_case, nargs="*", default=[], metavar=shape, help="traces with domains"
    )
    parser.add_argument("--pair", action="store_true", help="join the captures of a trace into two")
    arguments = parser.parse_args()
    print(f"# Several captures together\n\n{describe_machine()}\n")
    print("Rank imbalance of the worst capture, mean over layers; copies serve even shares; CPU s of `robust`.\n")
    print("| captures | GPUs | redundant | alone | sum | solve | robust | no map below | CPU s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for path, shape, redundant in chain(*arguments.given):
        print(together(path, shape, redundant, pair=arguments.pair), flush=True)
    if arguments.held_out:
        print(f"\nHeld out (30% of the requests, means over {len(SEEDS)} seeds), `--objective balance`.\n")
        print("| trace | GPUs | redundant | exact loads: all | worst domain | default: all | worst domain |")
        print("|---|---|---|---|---|---|---|")
    for path, shape, redundant in chain(*arguments.held_out):
        print(held_out(path, shape, redundant), flush=True)


def input_case(text: str) -> list[Case]:
    """The type of captures, the shape of a cluster and numbers of redundant experts."""
    return _cases(
        text, lambda path: input_arrays(path, "subject", "frac") if path.endswith(".npz") else input_trace(path)
    )


def input_trace_case(text: str) -> list[Case]:
    """The same of a trace."""
    return _cases(text, input_trace)


def _cases(text: str, read: Callable[[str], Path]) -> list[Case]:
    found = re.fullmatch(r"(.+):([1-9]\d*x[1-9]\d*):(\d+(?:,\d+)*)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text} is not PATH:NxG:R,R; give one such as TRACE:4x8:0,32")
    path, shape, numbers = found.groups()
    read(path)
    return [(path, shape, int(number)) for number in numbers.split(",")]


if __name__ == "__main__":
    run_script(main)
