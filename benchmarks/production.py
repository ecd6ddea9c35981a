"""What `placement solve` costs on shapes that are deployed, and what its maps are worth held out; beside an older tree.

    python benchmarks/production.py [--data FOLDER] [--only TEXT ...] [--vs TREE] [--measure time quality]

`time` is that of the whole command on the whole trace as a user runs it, after a run of few moves that compiles.
`quality` is measured on splits by request that this tree makes: each tree fits its map to the rest, and this tree
measures both maps on what is held out. With `--figures FILE` the quality of the older tree is not measured twice.
FOLDER holds real traces (expert-trace/1) by name; none is shipped, and rows without their trace are skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from machine import checkout, describe_machine, input_folder, output_file, placement, run_script

THIS = Path(__file__).resolve().parents[1]
HOLDOUT, BALANCE_WEIGHT, FEW_MOVES, FIVE = 0.3, 1.5, 100, range(100, 105)
SYNTHETIC = {
    "deepseek-v3": "--preset deepseek-v3 --no-group-limit --tokens 100000 --requests 400 --seed 1",
    "64 experts": "--layers 24 --experts 64 --top-k 6 --tokens 100000 --requests 400 --seed 1",
}
HEADS = ("CPU s", "wall s", "peak MB", "mean gap", "objective, fitted", "sends, held out", "imbalance, held out")
Figures = dict[str, list[float]]  # head: a figure a run, or a split


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A trace, the cluster, and the seeds of the splits."""

    trace: str
    nodes: int
    gpus: int
    redundant: int
    seeds: range = range(1)
    grouped: bool = False

    @property
    def name(self) -> str:
        shape = f"{self.trace}, {self.nodes} x {self.gpus}, {self.redundant} redundant"
        return f"{shape}, grouped" if self.grouped else shape

    def solve(self, tree: Path, trace: str, answer: str, *more: str) -> list[str]:
        """The command that finds a map in a tree, which may be older than the command `group`."""
        shape = f"--nodes {self.nodes} --gpus-per-node {self.gpus} --redundant-experts {self.redundant}".split()
        if not self.grouped:
            return ["solve", trace, *shape, "-o", answer, *more]
        if "--placement-out" in run(tree, "group", "--help")[0]:
            return ["group", trace, *shape, "--placement-out", answer, "-o", f"{answer}.homes", *more]
        return ["solve", trace, "--group", *shape, "-o", answer, "--grouping-out", f"{answer}.homes", *more]


ROWS = (
    Row(trace="deepseek-v3", nodes=4, gpus=8, redundant=32),
    Row(trace="deepseek-v3", nodes=4, gpus=8, redundant=0),
    Row(trace="deepseek-v3", nodes=2, gpus=8, redundant=0),
    Row(trace="deepseek-v3", nodes=8, gpus=8, redundant=64),
    Row(trace="deepseek-v3", nodes=40, gpus=8, redundant=64),
    Row(trace="gptoss20b", nodes=4, gpus=2, redundant=8, seeds=range(2)),
    Row(trace="gptoss20b", nodes=4, gpus=2, redundant=0, seeds=range(2), grouped=True),
    Row(trace="glm52_16", nodes=4, gpus=8, redundant=0, seeds=FIVE),
    Row(trace="glm52_16", nodes=4, gpus=8, redundant=32, seeds=FIVE),
    Row(trace="64 experts", nodes=4, gpus=8, redundant=32),
    Row(trace="64 experts", nodes=4, gpus=8, redundant=64),
    Row(trace="esft_dsv2lite", nodes=4, gpus=4, redundant=0, seeds=FIVE),
    Row(trace="esft_dsv2lite", nodes=4, gpus=4, redundant=16, seeds=FIVE),
)


def run(tree: Path, *words: str) -> tuple[str, float, float, int]:
    return placement(*words, environment=os.environ | {"PYTHONPATH": f"{tree}{os.pathsep}{tree / 'api'}"})


def time_of(row: Row, trees: list[Path], trace: str, answer: str, runs: int) -> Iterator[tuple[Path, Figures]]:
    """Each tree in turn, `runs` times."""
    for tree in trees:
        run(tree, *row.solve(tree, trace, answer, "--work-limit", str(FEW_MOVES)))
    for tree in trees * runs:
        _, wall_s, cpu_s, peak_bytes = run(tree, *row.solve(tree, trace, answer))
        gaps = [layer["gap"] for layer in json.loads(Path(answer).read_text())["layers"] if layer["gap"] is not None]
        mean_gap = [100 * mean(gaps)] if gaps else []
        figures = ([cpu_s], [wall_s], [peak_bytes / 1e6], mean_gap)
        yield tree, dict(zip(HEADS[:4], figures, strict=True))


def quality_of(row: Row, tree: Path, trace: str, room: str) -> Iterator[Figures]:
    """Each split; one worker, so that other measurements beside suffer little."""
    answer = f"{room}/map.json"
    for seed in row.seeds:
        split = f"{room}/split-{Path(trace).name}-{seed}"
        if not Path(split).exists():
            run(THIS, "traces", "split", trace, "--holdout", str(HOLDOUT), "--seed", str(seed), "-o", split)
        options = ["--holdout", "0", "--seed", str(seed), "--bound", "none", "--workers", "1"]
        run(tree, *row.solve(tree, f"{split}/train", answer, *(options if not row.grouped else options[:4])))
        (fitted, fitted_uneven), (sends, uneven) = (
            judge(row, f"{split}/{side}", answer) for side in ("train", "held-out")
        )
        objective = fitted + BALANCE_WEIGHT * fitted_uneven
        yield dict(zip(HEADS[4:], ([objective], [sends], [uneven]), strict=True))


def judge(row: Row, trace: str, answer: str) -> tuple[float, float]:
    """(sends a token and layer, mean rank imbalance) by this tree; of a grouped map with the homes that suit it."""
    if row.grouped:
        words = ["group", trace, "--map", answer, "--holdout", "0", "-o", f"{answer}.homes", "--json"]
        gains: list[dict[str, Any]] = json.loads(run(THIS, *words)[0])["gains"]
        (figures,) = [gain["train"] for gain in gains if gain["name"] == "map + homes"]
    else:
        words = ["evaluate", trace, "--map", answer, "--workers", "1", "--json"]
        figures = json.loads(run(THIS, *words)[0])["maps"][0]["summary"]
    return figures["node_sends_per_token"], figures["rank_imbalance"]["mean"]


def trace_of(row: Row, data: Path | None, room: str) -> str | None:
    """The folder of a row's trace, made if synthetic; None where a real one is absent."""
    if row.trace not in SYNTHETIC:
        return str(data / row.trace) if data is not None and (data / row.trace).exists() else None
    path = f"{room}/{row.trace.replace(' ', '-')}"
    if not Path(path).exists():
        run(THIS, "traces", "synth", *SYNTHETIC[row.trace].split(), "-o", path)
    return path


def line(name: str, sides: list[Figures]) -> str:
    """Medians of runs and means of splits; before and after in one cell."""

    def cell(head: str) -> str:
        figures = [side.get(head, []) for side in sides]
        centre = median if head in HEADS[:4] else mean
        digits = 1 if head in HEADS[:4] else 4
        return " → ".join(f"{centre(one):.{digits}f}" if one else "" for one in figures)

    return f"| {name} | {' | '.join(map(cell, HEADS))} |"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=input_folder, help="folder of real traces")
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose name has one of these texts")
    parser.add_argument("--vs", type=checkout, help="checkout of an older state, measured in turn")
    parser.add_argument("--measure", nargs="+", choices=("time", "quality"), default=["time", "quality"])
    parser.add_argument("--runs", type=int, default=1, help="runs that are timed, of which the median is shown")
    parser.add_argument(
        "--figures", type=output_file, help="JSON file of all figures, which keeps what has been measured"
    )
    parser.add_argument("--only-vs", action="store_true", help="measure the older state alone")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    old: Path | None = given.vs
    trees = [tree for tree in (old, None if given.only_vs else THIS) if tree is not None]
    file: Path | None = given.figures
    known = json.loads(file.read_text()) if file is not None and file.exists() else {}
    print(f"# Production shapes\n\n{describe_machine()}; {' → '.join(map(str, trees))}\n")
    print(f"| | {' | '.join(HEADS)} |\n|{'---|' * (len(HEADS) + 1)}")
    with tempfile.TemporaryDirectory() as room:
        for row in ROWS:
            if not any(text in row.name for text in given.only):
                continue
            trace = trace_of(row, given.data, room)
            if trace is None:
                print(f"| {row.name} | skipped: --data has no {row.trace} |")
                continue
            sides: dict[Path, Figures] = {tree: {} for tree in trees}
            measured = known.setdefault(row.name, {})
            if "time" in given.measure:
                for tree, figures in time_of(row, trees, trace, f"{room}/map.json", given.runs):
                    gather(sides[tree], figures)
            for tree in trees if "quality" in given.measure else []:
                kept = measured.get("vs", {}) if tree == old else {}
                if all(len(kept.get(head, [])) == len(row.seeds) for head in HEADS[4:]):
                    gather(sides[tree], {head: kept[head] for head in HEADS[4:]})
                else:
                    for figures in quality_of(row, tree, trace, room):
                        gather(sides[tree], figures)
            for tree, figures in sides.items():
                measured.setdefault("vs" if tree == old else "this", {}).update(figures)
            print(line(row.name, list(sides.values())), flush=True)
            if file is not None:
                file.write_text(json.dumps(known, indent=1) + "\n")


def gather(side: Figures, figures: Figures) -> None:
    for head, values in figures.items():
        side.setdefault(head, []).extend(values)


if __name__ == "__main__":
    run_script(main)
