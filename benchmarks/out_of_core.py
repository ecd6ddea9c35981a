"""Counting and solving a trace far larger than memory: rate beside numpy.bincount on the same files, peak memory.

Every step is a process of its own, so that its peak memory is its own. `out_of_core.py FOLDER` makes the trace in
FOLDER/trace if it is absent, and counts it with one worker into a new folder beside it.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SEED = 0
PRESET = "gpt-oss-20b"
GIB = 1 << 30


def read_with_bincount(trace_folder: str) -> int:
    """The load of every layer as anybody would count it; returns the number of rows."""
    from safetensors import safe_open

    model = json.loads((Path(trace_folder) / "trace.json").read_text())
    num_layers, num_experts, top_k = len(model["layer_ids"]), model["num_experts"], model["top_k"]
    load = np.zeros((num_layers, num_experts), dtype=np.int64)
    for path in sorted(Path(trace_folder).glob("shard-*.safetensors")):
        with safe_open(path, framework="np") as shard:
            ids = shard.get_slice("expert_ids")
            for layer in range(num_layers):
                load[layer] += np.bincount(ids[layer].ravel(), minlength=num_experts)
    return int(load.sum()) // top_k


def count(trace_folder: str, counts_folder: str) -> int:
    """What `placement traces count --workers 1` does; returns the number of rows."""
    from placement import open_trace
    from placement.workload.counts_folder import count_to_folder

    trace = open_trace(trace_folder)
    return count_to_folder(trace, counts_folder, holdout=0.2, seed=SEED).num_tokens * trace.model.num_layers


def run_cli(*arguments: str) -> int:
    from placement.cli import app

    app(list(arguments), standalone_mode=False)
    return 0


STEPS: dict[str, Callable[..., int]] = {"bincount": read_with_bincount, "count": count, "cli": run_cli}


def step(name: str, *arguments: str) -> None:
    """Run in a process of its own; tells on the last line of stdout what it took."""
    import placement  # noqa: F401  what is measured is the work

    begun, cpu = time.perf_counter(), time.process_time()
    result = STEPS[name](*arguments)
    took = {"result": result, "wall_s": time.perf_counter() - begun, "cpu_s": time.process_time() - cpu}
    took["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    print("\n" + json.dumps(took))


def measured(name: str, *arguments: object) -> dict[str, Any]:
    command = [sys.executable, __file__, "--step", name, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    if sys.argv[1:2] == ["--step"]:
        step(*sys.argv[2:])
        return
    from machine import describe_machine, output_folder

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=output_folder)
    parser.add_argument("--preset", default=PRESET)
    parser.add_argument("--tokens", type=int, default=42_000_000)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--work-limit", type=int, default=None)
    options = parser.parse_args()
    trace, counts = options.folder / "trace", options.folder / "counts"
    options.folder.mkdir(parents=True, exist_ok=True)
    if not trace.exists():
        shape = ("--preset", options.preset, "--tokens", options.tokens, "--requests", options.requests, "--seed", SEED)
        made = measured("cli", "traces", "synth", "-o", trace, *shape)
        print(f"made in {made['wall_s']:.0f} s", file=sys.stderr)
    size = sum(path.stat().st_size for path in trace.glob("*.safetensors"))
    reading, counting = [], []
    for _ in range(options.repeats):  # one after the other, so that both meet the same machine
        reading.append(measured("bincount", trace))
        shutil.rmtree(counts, ignore_errors=True)
        counting.append(measured("count", trace, counts))
    again = measured("cli", "traces", "count", trace, "-o", counts, "--seed", SEED)
    limit = () if options.work_limit is None else ("--work-limit", options.work_limit)
    shape = ("--nodes", 4, "--gpus-per-node", 2, "-o", options.folder / "placement.json", *limit)
    solving = measured("cli", "solve", counts, *shape)
    document = json.loads((options.folder / "placement.json").read_text())
    rows = counting[0]["result"]
    if reading[0]["result"] != rows:
        raise SystemExit("the counts differ: this benchmark is void")
    best = {name: min(run[name] for run in counting) for name in ("wall_s", "cpu_s")}
    numpy = {name: min(run[name] for run in reading) for name in ("wall_s", "cpu_s")}
    print(f"# Out of core\n\n{describe_machine()}, seed {SEED}, best of {options.repeats}\n")
    print(
        f"{options.preset}-shaped synthetic trace of {rows:,} token-layer rows, {size / 1e9:.1f} GB in "
        f"{len(list(trace.glob('*.safetensors'))):,} shards, in the page cache; one worker.\n"
    )
    print("| step | wall s | CPU s | million rows / CPU s | peak memory GiB |\n|---|---|---|---|---|")
    lines = [
        ("numpy.bincount of every layer", {**reading[0], **numpy}, True),
        ("placement traces count", {**counting[0], **best}, True),
        ("the same again, nothing has changed", again, False),
        ("placement solve counts/", solving, False),
    ]
    for name, took, rated in lines:
        rate = f"{rows / took['cpu_s'] / 1e6:.0f}" if rated else ""
        print(f"| {name} | {took['wall_s']:.1f} | {took['cpu_s']:.1f} | {rate} | {took['peak_gib']:.2f} |")
    ratio = {name: best[name] / numpy[name] for name in best}
    print(
        f"\nCounting takes {ratio['cpu_s']:.2f} times the CPU time of numpy.bincount ({ratio['wall_s']:.2f} of wall)."
    )
    held_out = document["evaluation"]["held_out"]
    told = ", ".join(
        f"{name} {answer['sends_per_token']:.4f} (standard error {answer['sends_error']:.4f})"
        for name, answer in held_out.items()
    )
    tokens = next(iter(held_out.values()))
    print(f"Held-out sends per token, on {tokens['sampled_tokens']:,} sampled tokens of {tokens['tokens']:,}: {told}.")


if __name__ == "__main__":
    main()
