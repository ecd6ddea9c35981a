"""What the busiest link of default maps carries on held-out requests, beside the maps of an older tree.

    python benchmarks/busiest_link.py --data FOLDER [--only TEXT ...] [--vs TREE]

Each tree fits its map to the same 70% of the requests, in turn on each of five splits, and this tree measures both
maps on the rest. Busiest sends are the mean over layers of sends times the larger of `busiest_in` and `busiest_out`.
FOLDER holds real traces (expert-trace/1) by name; none is shipped, and rows without their trace are skipped.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean

from machine import checkout, describe_machine, input_folder, run_script
from production import FIVE, HOLDOUT, THIS, Row, run

ROWS = (
    Row(trace="gptoss20b", nodes=4, gpus=2, redundant=0, seeds=FIVE),
    Row(trace="gptoss20b", nodes=4, gpus=2, redundant=8, seeds=FIVE),
    Row(trace="esft_dsv2lite", nodes=4, gpus=4, redundant=0, seeds=FIVE),
    Row(trace="esft_dsv2lite", nodes=4, gpus=4, redundant=16, seeds=FIVE),
    Row(trace="glm52_16", nodes=4, gpus=8, redundant=0, seeds=FIVE),
    Row(trace="glm52_16", nodes=4, gpus=8, redundant=32, seeds=FIVE),
)
HEADS = ("busiest sends", "sends", "busiest in", "busiest out", "rank imbalance", "CPU s")


def figures_of(row: Row, tree: Path, seed: int, room: str, data: Path) -> list[float]:
    """A figure for each of HEADS: fitted by the tree, measured by this one."""
    split, answer = f"{room}/{row.trace}-{seed}", f"{room}/map.json"
    if not Path(split).exists():
        words = ["--holdout", str(HOLDOUT), "--seed", str(seed), "-o", split]
        run(THIS, "traces", "split", str(data / row.trace), *words)
    words = ["--holdout", "0", "--seed", str(seed), "--bound", "none", "--workers", "1"]
    cpu_s = run(tree, *row.solve(tree, f"{split}/train", answer, *words))[2]
    words = ["evaluate", f"{split}/held-out", "--map", answer, "--workers", "1", "--json"]
    (shown,) = json.loads(run(THIS, *words)[0])["maps"]
    layers = shown["layers"]
    busiest = mean(one["sends_per_token"] * max(one["busiest_in"], one["busiest_out"]) for one in layers)
    summary = shown["summary"]
    means = [summary[name]["mean"] for name in ("busiest_in", "busiest_out", "rank_imbalance")]
    return [busiest, summary["sends_per_token"], *means, cpu_s]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=input_folder, required=True, help="folder of real traces")
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose name has one of these texts")
    parser.add_argument("--vs", type=checkout, help="checkout of an older state, measured in turn")
    given = parser.parse_args()
    trees = [tree for tree in (given.vs, THIS) if tree is not None]
    print(f"# The busiest link\n\n{describe_machine()}; means over splits; {' → '.join(map(str, trees))}\n")
    print(f"| | {' | '.join(HEADS)} |\n|{'---|' * (len(HEADS) + 1)}")
    with tempfile.TemporaryDirectory() as room:
        for row in ROWS:
            if not any(text in row.name for text in given.only):
                continue
            if not (given.data / row.trace).exists():
                print(f"| {row.name} | skipped: --data has no {row.trace} |")
                continue
            measured: dict[Path, list[list[float]]] = {tree: [] for tree in trees}
            for seed in row.seeds:
                for tree in trees:
                    measured[tree].append(figures_of(row, tree, seed, room, given.data))
            cells = [
                " → ".join(f"{mean(figures[head] for figures in measured[tree]):.4f}" for tree in trees)
                for head in range(len(HEADS))
            ]
            print(f"| {row.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    run_script(main)
