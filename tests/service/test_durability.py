"""What was acknowledged is done: through kill -9, on SQLite and on PostgreSQL."""

from __future__ import annotations

import random
import sqlite3
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from books import Books
from tests_service import Server, tar_of, wait_until

from placement import Cluster, Options, open_trace, solution_document, solve
from placement.documents.placement import PlacementFile

JOBS = 20


@pytest.mark.parametrize(("kind", "kills"), [("sqlite", 6), ("postgres", 3)])
def test_every_acknowledged_job_ends_once_however_often_the_server_is_killed(
    kind: str, kills: int, request: pytest.FixtureRequest, tmp_path: Path, trace: Path
) -> None:
    """kill -9 amid 20 queued jobs, while they run and while the server starts: all end, once, with the bytes of a
    quiet solve and no file beside; no solver outlives its server."""
    chance = random.Random(kills)
    url = "" if kind == "sqlite" else str(request.getfixturevalue("database_url"))
    arguments = ("--max-jobs", "2", *(("--database-url", url) if url else ()))
    server = Server(data=tmp_path / "data", arguments=arguments)
    try:
        server.start()
        books = Books(server.data, url)
        with server.client() as client:
            uploaded = client.post("/v1/traces", files={"file": ("t.tgz", tar_of(trace))}).json()["id"]
            works = [_work(seed, chance) for seed in range(JOBS)]
            jobs = [_ask(client, uploaded, work) for work in works]
        interrupted = 0
        for kill in range(kills):
            if kill % 3 == 2:
                time.sleep(chance.uniform(0.1, 2.0))  # amid its start
            else:
                server.wait()
                wait_until(lambda: "running" in books.states())
                time.sleep(chance.uniform(0.0, 0.4))
            states = books.states()
            assert set(states) & {"queued", "running"}, "all jobs are done before the last kill: give them more work"
            interrupted += "running" in states
            solvers = psutil.Process(server.pid).children(recursive=True)
            server.kill()
            assert not psutil.wait_procs(solvers, timeout=30)[1]
            server.launch()
        server.wait()
        wait_until(lambda: not set(books.states()) & {"queued", "running"}, seconds=300)
        assert interrupted > kills / 2
        assert books.endings() == {job: ["done"] for job in jobs}
        with server.client() as client:
            assert [_ask(client, uploaded, work) for work in works] == jobs
            assert sorted(row["id"] for row in client.get("/v1/placements").json()) == sorted(jobs)
            for job, work in zip(jobs, works, strict=True):
                alone = solve(open_trace(trace), Cluster.fit(8, num_nodes=2, gpus_per_node=2), Options(**work))
                assert client.get(f"/v1/placements/{job}").content == PlacementFile.encode(solution_document(alone))
        blobs = [path.name for path in (server.data / "blobs").glob("*/*") if not path.name.startswith(".")]
        assert sorted(blobs) == books.files()
        assert len(blobs) == 2 * JOBS  # a placement, and the figures that its page shows
    finally:
        server.kill()


def test_a_queue_that_forgot_jobs_gets_them_again(tmp_path: Path, trace: Path) -> None:
    """A disk or a database failed at the wrong time: the queue takes a job for running here, for ended, or has none."""
    server = Server(data=tmp_path / "data", arguments=("--max-jobs", "1"))
    try:
        server.start()
        books = Books(server.data)
        with server.client() as client:
            uploaded = client.post("/v1/traces", files={"file": ("t.tgz", tar_of(trace))}).json()["id"]
            works = [
                {"solver": "anneal", "bound": "none", "work_limit": limit, "seed": seed}
                for seed, limit in enumerate([2_000_000, 100_000, 100_000, 100_000])
            ]
            jobs = [_ask(client, uploaded, work) for work in works]
            wait_until(lambda: "running" in books.states())
            queue = sqlite3.connect(server.data / "queue.sqlite", timeout=30)
            with queue:
                [host] = queue.execute("SELECT executor_id FROM workflow_status WHERE status = 'PENDING'").fetchone()
                change = "UPDATE workflow_status SET status = ?, executor_id = ? WHERE workflow_uuid = ?"
                queue.executemany(change, [("PENDING", host, jobs[1]), ("ERROR", host, jobs[2])])
                queue.execute("DELETE FROM workflow_status WHERE workflow_uuid = ?", [jobs[3]])
            queue.close()
            wait_until(lambda: set(books.states()) == {"done"}, seconds=300)
            assert books.endings() == {job: ["done"] for job in jobs}
    finally:
        server.kill()


def _work(seed: int, chance: random.Random) -> dict[str, Any]:
    """A tenth of a second to one second on a quiet machine."""
    return {"solver": "anneal", "bound": "none", "work_limit": chance.randrange(100_000, 1_500_000), "seed": seed}


def _ask(client: httpx.Client, trace: str, work: dict[str, Any]) -> str:
    body = {"traces": [trace], "cluster": {"num_nodes": 2, "gpus_per_node": 2}, "options": work, "report": False}
    answer = client.post("/v1/placements", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])
