"""Memory of the service over many small jobs: resident bytes of its processes, sampled as the jobs end.

    python benchmarks/service/memory.py [--jobs N] [--every N]

Each job solves 8 experts of one layer from counts, with a seed of its own, so that none is answered by another. Clients
ask with `?wait=30`, enough of them side by side that the queue is never empty. Prints a Markdown result.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import describe_machine
from server import Server, served

COUNTS = {"top_k": 2, "counts": [[9, 1, 4, 4, 2, 8, 6, 2]]}
CLUSTER = {"num_nodes": 2, "gpus_per_node": 2}
CLIENTS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=500)
    parser.add_argument("--database-url", default="")
    given = parser.parse_args()
    database = ("--database-url", given.database_url) if given.database_url else ()
    with (
        tempfile.TemporaryDirectory() as folder,
        served(Path(folder) / "data", "--rate-limit", "100000", *database) as server,
    ):
        measure(server, given.jobs, given.every)


def measure(server: Server, jobs: int, every: int) -> None:
    print(f"# Memory over {jobs:,} jobs\n\n{describe_machine()}.\n")
    print("| jobs done | service MiB | starter of jobs MiB | open files | threads | ms a job |")
    print("|---|---|---|---|---|---|")
    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as clients:
        for done in range(0, jobs + 1, every):
            if done:
                list(clients.map(lambda seed: solve(server, seed), range(done - every, done)))
            show(server, done, (time.perf_counter() - began) * 1e3 / every)
            began = time.perf_counter()


def solve(server: Server, seed: int) -> None:
    body = {"counts": COUNTS, "cluster": CLUSTER, "options": {"objective": "balance", "seed": seed}, "report": False}
    for _ in range(20):  # on a busy machine it may take longer; the same request is the same job
        status, content, _ = server.ask("POST", "/v1/placements?wait=30", body)
        if status == 200:
            return
    raise SystemExit(f"job {seed} does not end: {content.decode()}")


def show(server: Server, done: int, ms: float) -> None:
    service = psutil.Process(server.pid)
    starters = [child for child in service.children() if "forkserver" in " ".join(child.cmdline())]
    mib = [process.memory_info().rss / (1 << 20) for process in (service, *starters)]
    figures = [f"{done:,}", f"{mib[0]:.1f}", f"{sum(mib[1:]):.1f}", service.num_fds(), service.num_threads()]
    print("|", " | ".join(map(str, figures)), "|", f"{ms:.0f}" if done else "", "|", flush=True)


if __name__ == "__main__":
    main()
