"""From `placement serve` to the first placement of the example traces, on a new data folder.

    python benchmarks/service/first_placement.py [--runs N] [--beside DIR]

Rounds with an empty cache of compiled kernels and with a full one take turns. One request sends the trace and waits for
the placement, as soon as `/healthz` answers. `--beside` names another checkout, whose rounds take turns with those of
this one. Prints a Markdown result: wall seconds until the service answers and until the placement is there, and seconds
of all cores until then.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import checkout, describe_machine
from server import served

HERE = Path(__file__).parents[2]
BOUNDARY = "part-of-the-request"
REQUEST = {"cluster": {"num_nodes": 4, "gpus_per_node": 2}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--beside", type=checkout)
    given = parser.parse_args()
    trees = {"this": HERE} | ({} if given.beside is None else {"other": given.beside})
    print(f"# First placement of a fresh service, `examples/traces`\n\n{describe_machine()}.\n")
    print("| tree | kernels | load before | service answers, s | placement, s | seconds of all cores |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # which is searched for packages first
        for run in range(given.runs):
            for kernels in ("empty", "full"):
                for name, tree in trees.items():
                    cache = Path(folder) / f"{name}-{run}"  # the round with an empty cache fills it
                    figures = measure(tree, Path(folder) / f"{name}-{run}-{kernels}", cache)
                    print("|", " | ".join((name, kernels, *(f"{one:.1f}" for one in figures))), "|", flush=True)


def measure(tree: Path, data: Path, cache: Path) -> tuple[float, float, float, float]:
    """(load of the machine before, seconds until the service answers, until the placement, seconds of all cores)."""
    os.environ |= {"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'api'}"}
    sent = body()
    # files of Python are compiled and read before: an installation has that behind it
    subprocess.run([sys.executable, "-c", "import placement_api.serve, placement_api.jobs.work"], check=True)
    load, began = os.getloadavg()[0], time.monotonic()
    with served(data) as server:
        up_s = time.monotonic() - began
        while True:
            request = urllib.request.Request(
                f"{server.url}/v1/placements?wait=60",
                data=sent,
                headers={"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"},
            )
            with urllib.request.urlopen(request, timeout=600) as answer:
                content = answer.read()
                if answer.status == 200:
                    break
        placed_s = time.monotonic() - began
        if json.loads(content)["schema"] != "expert-placement/1":
            raise SystemExit(f"that is no placement: {content[:200]!r}")
        service = psutil.Process(server.pid)
        times = [process.cpu_times() for process in (service, *service.children(recursive=True))]
        # of children that have ended too: jobs and readings are children of the process that they are forked from
        cores_s = sum(one.user + one.system + one.children_user + one.children_system for one in times)
    return load, up_s, placed_s, cores_s


def body() -> bytes:
    """The multipart form of the example traces and the request."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(HERE / "examples" / "traces", ".")
    parts = (
        ('name="request"', json.dumps(REQUEST).encode()),
        ('name="file"; filename="trace.tar"', archive.getvalue()),
    )
    framed = [
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; {how}\r\n\r\n".encode() + content for how, content in parts
    ]
    return b"\r\n".join([*framed, f"--{BOUNDARY}--\r\n".encode()])


if __name__ == "__main__":
    main()
