"""Several hosts and one PostgreSQL: what a host, or the database, leaves behind goes on."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from books import Books
from dbos import DBOS
from placement_api.jobs.hosts import BEAT_S, LEASE_S, RECOVER, check_dbos
from placement_api.jobs.queue import Jobs
from tests_service import Server, problem_of, tar_of, wait_until

from placement import Cluster, Options, open_trace, solution_document, solve
from placement.documents.placement import PlacementFile
from placement.errors import OptionError

LONG, SHORT = 30_000_000, 200_000  # three seconds, and almost none, on a quick machine
SLACK_S = 10.0  # machines that run tests are slow at times


def _ask(client: httpx.Client, trace: str, seed: int, work_limit: int) -> str:
    options = {"solver": "anneal", "bound": "none", "work_limit": work_limit, "seed": seed}
    body = {"traces": [trace], "cluster": {"num_nodes": 2, "gpus_per_node": 2}, "options": options, "report": False}
    answer = client.post("/v1/placements", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def _check(client: httpx.Client, jobs: dict[str, tuple[int, int]], trace: Path) -> None:
    """Every placement is the one of a quiet solve."""
    for job, (seed, work_limit) in jobs.items():
        options = Options(solver="anneal", bound="none", work_limit=work_limit, seed=seed)
        alone = solve(open_trace(trace), Cluster.fit(8, num_nodes=2, gpus_per_node=2), options)
        assert client.get(f"/v1/placements/{job}").content == PlacementFile.encode(solution_document(alone))


def test_a_dbos_that_cannot_take_over_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one function of DBOS that is not public: the installed DBOS has it; without it jobs would wait for ever."""
    check_dbos()
    queue = object.__new__(Jobs)
    for other in (None, lambda host: None):
        monkeypatch.setattr(DBOS, RECOVER, other)
        with pytest.raises(OptionError, match=r"no _recover_pending_workflows\(executor_ids\).*install dbos 3.4"):
            queue.start()


def test_another_host_takes_over_from_one_that_died_and_from_one_that_hangs(
    database_url: str, tmp_path: Path, trace: Path
) -> None:
    """Within the lease, without its coming back. The one that hung, awake again, ends none of its jobs a second time
    and goes on working."""
    shared = ("--database-url", database_url, "--max-jobs", "1")
    hosts = {
        name: Server(data=tmp_path / "data", log_name=name, arguments=(*shared, "--executor", name))
        for name in ("dies", "hangs", "stays")
    }
    try:
        hosts["stays"].start()
        for name in ("dies", "hangs"):
            hosts[name].launch()
        for name in ("dies", "hangs"):
            hosts[name].wait()
        books = Books(tmp_path / "data", database_url)
        with hosts["stays"].client() as client:
            uploaded = client.post("/v1/traces", files={"file": ("t.tgz", tar_of(trace))}).json()["id"]
            works = [(seed, LONG if seed < 3 else SHORT) for seed in range(6)]
            jobs = {_ask(client, uploaded, *work): work for work in works}
            wait_until(lambda: set(books.hosts().values()) == {"dies", "hangs", "stays"}, seconds=180)
            left = {job for job, host in books.hosts().items() if host != "stays"}
            hosts["dies"].kill()
            os.kill(hosts["hangs"].pid, signal.SIGSTOP)
            began = time.monotonic()
            wait_until(lambda: not {"dies", "hangs"} & set(books.hosts().values()))
            assert time.monotonic() - began < LEASE_S + 2 * BEAT_S + SLACK_S
            wait_until(lambda: max(books.attempts()[job] for job in left) > 1, seconds=180)
            os.kill(hosts["hangs"].pid, signal.SIGCONT)
            wait_until(lambda: set(books.states()) == {"done"}, seconds=300)
            assert books.endings() == {job: ["done"] for job in jobs}
            assert {books.attempts()[job] for job in left} == {2}
            _check(client, jobs, trace)
            hosts["stays"].kill()
        with hosts["hangs"].client() as client:
            _ask(client, uploaded, 6, SHORT)
            wait_until(lambda: set(books.states()) == {"done"})
    finally:
        for server in hosts.values():
            server.kill()


def test_a_host_that_is_told_to_end_leaves_its_job_at_once(database_url: str, tmp_path: Path, trace: Path) -> None:
    """As when a deployment replaces it: nobody waits for the lease."""
    shared = ("--database-url", database_url, "--max-jobs", "1")
    hosts = [
        Server(data=tmp_path / "data", log_name=name, arguments=(*shared, "--executor", name)) for name in ("a", "b")
    ]
    try:
        hosts[0].start()
        books = Books(tmp_path / "data", database_url)
        with hosts[0].client() as client:
            uploaded = client.post("/v1/traces", files={"file": ("t.tgz", tar_of(trace))}).json()["id"]
            _ask(client, uploaded, 0, 20 * LONG)
        wait_until(lambda: set(books.hosts().values()) == {"a"})
        hosts[1].start()
        began = time.monotonic()
        hosts[0].kill(signal.SIGTERM)
        wait_until(lambda: set(books.hosts().values()) == {"b"})
        assert time.monotonic() - began < LEASE_S
    finally:
        for server in hosts:
            server.kill()


def test_the_service_outlives_its_database(
    database_url: str, postgres_server: Any, tmp_path: Path, trace: Path
) -> None:
    """PostgreSQL is stopped and started again: 503 meanwhile, /healthz stays, the solve that runs is not begun again,
    what is queued follows, whoever listens to a job hears its end."""
    server = Server(data=tmp_path / "data", arguments=("--database-url", database_url, "--max-jobs", "1"))
    heard: list[dict[str, Any]] = []

    def listen(job: str) -> None:
        with server.client() as client, client.stream("GET", f"/v1/jobs/{job}/events") as events:
            heard.extend(json.loads(line[6:]) for line in events.iter_lines() if line.startswith("data: "))

    try:
        server.start()
        books = Books(server.data, database_url)
        with server.client() as client:
            uploaded = client.post("/v1/traces", files={"file": ("t.tgz", tar_of(trace))}).json()["id"]
            works = [(0, LONG), (1, SHORT), (2, SHORT)]
            jobs = {_ask(client, uploaded, *work): work for work in works}
            wait_until(lambda: "running" in books.states())
            listener = threading.Thread(target=listen, args=(next(iter(jobs)),))
            listener.start()
            wait_until(lambda: heard)
            solver = psutil.Process(server.pid).children(recursive=True)[-1]
            solver.suspend()  # outlasts the time without a database, on a quick machine too
            try:
                postgres_server.stop()
                for _ in range(3):
                    problem_of(client.get("/v1/jobs"), 503)
                    problem_of(client.get("/v1/jobs", headers={"Authorization": "Bearer plc_unknown"}), 503)
                    problem_of(client.post("/v1/placements", json=BODY), 503)
                    problem_of(client.get("/readyz"), 503)
                    assert client.get("/healthz").status_code == 200
                    time.sleep(1.0)
                assert solver.is_running()
            finally:
                postgres_server.ensure_postgres_running()
                solver.resume()
            wait_until(lambda: set(books.states()) == {"done"}, seconds=300)
            assert client.get("/readyz").status_code == 200
            assert books.endings() == {job: ["done"] for job in jobs}
            assert set(books.attempts().values()) == {1}
            _check(client, jobs, trace)
            listener.join(30)
            assert heard[-1]["state"] == "done"
    finally:
        server.kill()


BODY = {
    "counts": {"top_k": 1, "counts": [[9, 1, 4, 4], [2, 8, 6, 2]]},
    "cluster": {"num_nodes": 2, "gpus_per_node": 1},
    "options": {"objective": "balance"},
}
