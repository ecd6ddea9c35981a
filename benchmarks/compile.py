"""What the first solve on a machine compiles: each from an empty cache, then again with the cache that it filled."""

from __future__ import annotations

import os
import tempfile
from statistics import median

from machine import describe_machine, placement

RUNS = 3
SOLVE = "solve examples/traces --nodes 4 --gpus-per-node 2 --holdout 0.3"


def main() -> None:
    print("# Compilation at the first solve\n")
    print(f"{describe_machine()}. `placement {SOLVE}`, {RUNS} runs each from an empty cache, seed 0; medians last.\n")
    print("| redundant experts | run | cold s | cold CPU s | warm s | warm CPU s | cold - warm s |")
    print("|---|---|---|---|---|---|---|")
    for redundant in (0, 8):
        rows = [_cold_and_warm(redundant) for _ in range(RUNS)]
        for name, row in [*((str(run + 1), row) for run, row in enumerate(rows)), ("median", _medians(rows))]:
            figures = " | ".join(f"{figure:.1f}" for figure in (*row, row[0] - row[2]))
            print(f"| {redundant} | {name} | {figures} |", flush=True)


def _cold_and_warm(redundant: int) -> tuple[float, ...]:
    """Wall and CPU seconds of a solve that compiles, then of one that need not."""
    figures: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NUMBA_CACHE_DIR"] = f"{folder}/cache"
        for _ in range(2):
            output = f"{folder}/placement.json"
            _, wall_s, cpu_s, _ = placement(*SOLVE.split(), "--redundant-experts", str(redundant), "-o", output)
            figures += [wall_s, cpu_s]
    return tuple(figures)


def _medians(rows: list[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(median(column) for column in zip(*rows, strict=True))


if __name__ == "__main__":
    main()
