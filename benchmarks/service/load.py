"""Requests to the service while it solves: latency and requests a second, asked by wrk (Debian: apt-get install wrk).

    python benchmarks/service/load.py [TRACE] [--seconds S] [--strangers]

TRACE is an expert-trace/1; without one a synthetic trace of 24 layers and 32 experts is made. wrk's connections are
kept alive, and each asks again as soon as it is answered; client, service and solve share the machine's cores.
Prints a Markdown result; the best and the worst of three runs of each case are shown, none is left out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import describe_machine, input_trace, run_script
from server import Server, served

from placement.client import Client

SYNTH = ("--layers", "24", "--experts", "32", "--top-k", "4", "--tokens", "20000", "--requests", "200", "--seed", "0")
CLUSTER = {"num_nodes": 4, "gpus_per_node": 2}
QUICK = {"work_limit": 500, "bound": "none"}
FOREVER = {"solver": "anneal", "bound": "none", "work_limit": 2_000_000_000}
PLACEMENTS = 8
BODIES = 64
RUNS = 3
SCRIPT = Path(__file__).with_name("wrk.lua")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    title: str
    connections: int
    requests: list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", nargs="?", type=input_trace)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument(
        "--strangers",
        action="store_true",
        help="reads alone, with 1,000 half-open connections and four hostile uploads",
    )
    given = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("skipped: wrk is not installed; apt-get install wrk")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trace = given.trace
        if trace is None:
            trace = folder / "trace"
            quietly("traces", "synth", *SYNTH, "-o", str(trace))
        token = quietly("token", "create", "load", "--scope", "admin", "--data", str(folder / "data"))
        with served(folder / "data", token=token) as server:
            measure(server, trace, folder, given.seconds, strangers=given.strangers)


def measure(server: Server, trace: Path, folder: Path, seconds: int, *, strangers: bool) -> None:
    uploaded = Client(server.url, server.token).upload(trace)
    body = {"traces": [uploaded], "cluster": CLUSTER, "options": QUICK, "report": False}
    jobs = [
        server.json("POST", "/v1/placements", body | {"options": QUICK | {"seed": seed}, "group": {}})["id"]
        for seed in range(PLACEMENTS)
    ]
    for job in jobs:
        server.done(job)
    paths = [f"/v1/placements/{job}" for job in jobs]
    tags = [server.ask("GET", path)[2].get("etag", '""') for path in paths]
    summary = server.json("GET", "/v1/placements")[0]["summary"]
    shape = (summary["layers"], summary["experts"])
    kib = len(server.ask("GET", paths[0])[1]) / 1024
    routes = route_bodies(shape, CLUSTER["num_nodes"])
    reads = [{"method": "GET", "path": path} for path in paths]
    cases = [
        Case(title=f"GET placement, {kib:.0f} KiB", connections=200, requests=reads),
        Case(
            title="GET placement, If-None-Match: 304",
            connections=200,
            requests=[one | {"tag": tag} for one, tag in zip(reads, tags, strict=True)],
        ),
        Case(
            title=f"POST route, {shape[0]} x {shape[1]} counts, {len(routes[0]) / 1024:.1f} KiB",
            connections=64,
            requests=[
                {"method": "POST", "path": f"{paths[n % len(paths)]}/route", "body": one}
                for n, one in enumerate(routes)
            ],
        ),
    ]
    print("# The service under load\n")
    print(f"{describe_machine()}. wrk, {seconds} s a run, {RUNS} runs; a token; {PLACEMENTS} placements in turn.\n")
    print(
        "| case | connections | solve runs | requests/s | p50 ms | p99 ms | longest ms | service us/request | errors |"
    )
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    if strangers:
        show(cases[0], False, [wrk(server, cases[0], folder, seconds) for _ in range(RUNS)])
        with besieged(server):
            named = Case(title="the same beside strangers", connections=200, requests=reads)
            show(named, False, [wrk(server, named, folder, seconds) for _ in range(RUNS)])
        return
    for solving in (True, False):
        job = server.json("POST", "/v1/placements", body | {"options": FOREVER})["id"] if solving else None
        if job is not None:
            server.until(job, lambda now: now["progress"]["stage"] == "solve")
        for case in cases:
            show(case, solving, [wrk(server, case, folder, seconds) for _ in range(RUNS)])
        if job is not None:
            assert server.json("GET", f"/v1/jobs/{job}")["state"] == "running"
            server.ask("POST", f"/v1/jobs/{job}/cancel")


@contextmanager
def besieged(server: Server) -> Iterator[None]:
    """While strangers are at the door."""
    command = [sys.executable, str(Path(__file__).with_name("strangers.py")), server.url, server.token]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(5)
            yield
        finally:
            process.kill()


def route_bodies(shape: tuple[int, int], num_nodes: int) -> list[str]:
    """Counts of 200 tokens, top-4, with a taste for some experts; and the nodes' loads."""
    rng = np.random.default_rng(0)
    taste = rng.dirichlet(np.ones(shape[1]), size=(BODIES, shape[0]))
    counts = rng.multinomial(800, taste).tolist()
    load = rng.integers(0, 1000, (BODIES, num_nodes)).tolist()
    return [json.dumps({"counts": one, "load": own}) for one, own in zip(counts, load, strict=True)]


def wrk(server: Server, case: Case, folder: Path, seconds: int) -> dict[str, float]:
    """What one run of wrk measured."""
    asked = folder / "requests.txt"
    lines = []
    for one in case.requests:
        lines += [one["method"], one["path"], one.get("tag", ""), one.get("body", "")]
    asked.write_text("\n".join(lines) + "\n")
    command = ["wrk", "-t1", f"-c{case.connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(SCRIPT)]
    busy_s = server.busy_s()
    done = subprocess.run(
        [*command, server.url, "--", str(asked), server.token], check=True, capture_output=True, text=True
    )
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    measured["busy_us"] = (server.busy_s() - busy_s) * 1e6 / max(measured["requests"], 1)
    return measured


def show(case: Case, solving: bool, runs: list[dict[str, float]]) -> None:
    def both(name: str, form: str) -> str:
        low, high = min(run[name] for run in runs), max(run[name] for run in runs)
        return f"{low:{form}} to {high:{form}}"

    print(
        f"| {case.title} | {case.connections} | {'yes' if solving else 'no'} | {both('rate', ',.0f')} "
        f"| {both('p50', '.1f')} | {both('p99', '.1f')} | {both('longest', '.0f')} "
        f"| {both('busy_us', '.0f')} | {sum(run['errors'] for run in runs):.0f} |",
        flush=True,
    )


def quietly(*arguments: str) -> str:
    """What one `placement` command printed."""
    command = [sys.executable, "-c", "from placement.cli import main; main()", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    run_script(main)
