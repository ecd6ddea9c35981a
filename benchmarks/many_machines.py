"""Counting with one and with two workers of a Ray cluster on this machine, and with one that is killed on the way.

The trace is a synthetic one, many times over under other names of requests: `many_machines.py FOLDER` makes it in
FOLDER if it is absent, as links to the same files, so that they are read from the page cache. Needs two cores for the
workers; this process waits and adds up.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from machine import describe_machine, output_folder

from placement.support.ray_executor import RayExecutor
from placement.traces.synth import write_synthetic
from placement.traces.synthetic.presets import preset
from placement.traces.trace import Trace, open_trace
from placement.workload.count import count
from placement.workload.segment import SEGMENT_TOKENS
from placement.workload.workload import Workload

SEED = 0
PRESET = "gpt-oss-20b"
TOKENS, REQUESTS = SEGMENT_TOKENS // 4, 500  # of each copy
LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray listens on every address of the machine
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(16),  # else one is written to the home folder
}


def make(folder: Path, copies: int) -> Trace:
    base = folder / "trace-0"
    if not base.exists():
        write_synthetic(base, preset(PRESET), num_tokens=TOKENS, num_requests=REQUESTS, seed=SEED)
    manifest = json.loads((base / "trace.json").read_text())
    for number in range(1, copies):
        copy = folder / f"trace-{number}"
        if copy.exists():
            continue
        copy.mkdir()
        for shard in base.glob("shard-*.safetensors"):
            os.link(shard, copy / shard.name)
        requests = [{**request, "id": f"{number}-{request['id']}"} for request in manifest["requests"]]
        (copy / "trace.json").write_text(json.dumps({**manifest, "requests": requests}))
    return open_trace([folder / f"trace-{number}" for number in range(copies)])


def digest(workload: Workload) -> str:
    """Of every byte of it."""
    state = hashlib.sha256()
    for name in workload.__slots__:
        value = getattr(workload, name)
        state.update(np.ascontiguousarray(value).tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return state.hexdigest()


def timed(trace: Trace, workers: int, progress: Callable[[int], None] | None = None) -> tuple[float, str]:
    with RayExecutor(workers=workers) as executor:
        start = time.perf_counter()
        workload = count(trace, seed=SEED, executor=executor, progress=progress)
        return time.perf_counter() - start, digest(workload)


def kill_a_worker() -> int:
    """Ends one process that is counting; returns its id."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        for process in psutil.Process().children(recursive=True):
            try:
                if process.cmdline()[:1] == ["ray::_run"]:
                    os.kill(process.pid, signal.SIGKILL)
                    return process.pid
            except psutil.Error:
                continue
        time.sleep(0.01)
    raise SystemExit("no worker was counting any more; give more --copies")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=output_folder)
    parser.add_argument("--copies", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    os.environ |= LOOPBACK
    import ray

    trace = make(options.folder, options.copies)
    store = {"include_dashboard": False, "log_to_driver": False, "object_store_memory": 500_000_000}
    ray.init(num_cpus=2, _node_ip_address="127.0.0.1", logging_level="ERROR", **store)
    timed(trace, 2)  # both workers start, load the compiled code and have the files in the page cache
    runs: dict[int, list[tuple[float, str]]] = {1: [], 2: []}
    for _ in range(options.repeats):
        for workers, answers in runs.items():
            answers.append(timed(trace, workers))
            print(f"{workers} workers: {answers[-1][0]:.1f} s", file=sys.stderr)
    killed: list[int] = []

    def kill_once(_: int) -> None:
        if not killed:
            killed.append(kill_a_worker())

    hurt_s, hurt = timed(trace, 2, kill_once)
    here = digest(count(trace, seed=SEED))
    ray.shutdown()
    rows = trace.num_tokens_stored * trace.model.num_layers
    machine = f"{describe_machine()}, ray {ray.__version__}"
    print(f"# Counting on Ray\n\n{machine}, seed {SEED}, best of {options.repeats}\n")
    told = f"{PRESET}-shaped synthetic trace of {rows:,} token-layer rows"
    print(f"{told} in {len(trace.shards):,} shards, in the page cache.\n")
    print("| counted by | s | million rows/s | bytes |\n|---|---|---|---|")
    best: dict[str, tuple[float, str]] = {f"{n} worker{'s' * (n > 1)}": min(found) for n, found in runs.items()}
    best["2 workers, one killed"] = (hurt_s, hurt)
    for name, (seconds, found) in best.items():
        same = "as without Ray" if found == here else "DIFFERENT"
        print(f"| {name} | {seconds:.1f} | {rows / seconds / 1e6:.0f} | {same} |")
    everything: list[Any] = [found for answers in runs.values() for _, found in answers]
    if {*everything, hurt} != {here}:
        raise SystemExit("the counts differ: this benchmark is void")
    print(f"\nTwo workers count at {min(runs[1])[0] / min(runs[2])[0]:.2f} times the rate of one.")


if __name__ == "__main__":
    main()
