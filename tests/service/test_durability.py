"""What was acknowledged is done: through kill -9, on SQLite and on PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from tests_service import Server, tar_of

from placement import Cluster, Options, open_trace, solution_document, solve
from placement.placement_json import document_bytes

JOBS = 8
WORK = {"solver": "anneal", "bound": "none", "work_limit": 250_000}


@pytest.mark.parametrize(("kind", "kills"), [("sqlite", 3), ("postgres", 1)])
def test_every_acknowledged_job_ends_once_however_often_the_server_is_killed(
    kind: str,
    kills: int,
    request: pytest.FixtureRequest,
    make_server: Callable[..., Server],
    tmp_path: Path,
    trace: Path,
) -> None:
    """kill -9 amid queued jobs: all end, once, with the bytes of a quiet solve; no solver outlives its server."""
    url = () if kind == "sqlite" else ("--database-url", request.getfixturevalue("postgres"))
    server = make_server(tmp_path / "data", "--max-jobs", "2", *url)
    with server.client() as client:
        uploaded = client.post("/v1/traces", files={"file": ("t.tgz", tar_of(trace))}).json()["id"]
        jobs = [_ask(client, uploaded, seed) for seed in range(JOBS)]
    interrupted = 0
    for _ in range(kills):
        wait_until(lambda: set(_states(server, jobs)) != {"queued"})
        interrupted += "running" in _states(server, jobs)
        assert server.process is not None
        solvers = psutil.Process(server.process.pid).children(recursive=True)
        server.kill()
        assert not psutil.wait_procs(solvers, timeout=30)[1]
        server.start()
    wait_until(lambda: set(_states(server, jobs)) == {"done"}, seconds=180)
    assert interrupted
    with server.client() as client:
        assert [_ask(client, uploaded, seed) for seed in range(JOBS)] == jobs
        assert sorted(row["id"] for row in client.get("/v1/placements").json()) == sorted(jobs)
        for seed, job in enumerate(jobs):
            options = Options(seed=seed, **WORK)
            alone = solve(open_trace(trace), Cluster.fit(8, num_nodes=2, gpus_per_node=2), options)
            assert client.get(f"/v1/placements/{job}").content == document_bytes(solution_document(alone))
    server.kill()


def _ask(client: httpx.Client, trace: str, seed: int) -> str:
    body = {"traces": [trace], "cluster": {"num_nodes": 2, "gpus_per_node": 2}, "options": WORK | {"seed": seed}}
    answer = client.post("/v1/placements", json=body | {"report": False})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def _states(server: Server, jobs: list[str]) -> list[str]:
    with server.client() as client:
        known = {row["id"]: row["state"] for row in client.get("/v1/jobs").json()}
    return [known[job] for job in jobs]


def wait_until(true: Callable[[], Any], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)
