"""What an operator meets: logs, metrics, tokens that end, owners, a lock, errors at the start."""

from __future__ import annotations

import json
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from placement_api.answers import JobAnswer
from placement_api.store.tables import RUNNING, JobRow
from tests_service import Server, answered, problem_of, tar_of, wait_until

CLUSTER = {"num_nodes": 2, "gpus_per_node": 2}
QUICK = {"solver": "linear", "bound": "none"}
NAMES = ("one", "two", "boss", "scraper")
SCOPE = {"boss": "admin", "scraper": "metrics"}


@pytest.fixture(scope="module")
def manned(
    tmp_path_factory: pytest.TempPathFactory, make_server: Callable[..., Server], run_cli: Any
) -> tuple[Server, dict[str, str]]:
    """A service with two solvers, an administrator and a scraper."""
    data = tmp_path_factory.mktemp("manned") / "data"
    tokens = {}
    for name in NAMES:
        made = run_cli("token", "create", name, "--scope", SCOPE.get(name, "solve"), "--data", data)
        tokens[name] = made.stdout.strip()
    return make_server(data, "--access-log"), tokens


def lines(server: Server, request: str) -> list[dict[str, Any]]:
    """What the logs say of a request."""
    said = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    return [one for one in said if one["request"] == request]


def upload(client: httpx.Client, trace: Path) -> str:
    answer = client.post("/v1/traces", files={"file": ("t.tgz", tar_of(trace))})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def test_what_changes_something_is_in_the_audit_log(manned: tuple[Server, dict[str, str]], trace: Path) -> None:
    """Who, what, which id, how it went, and the id of the request that the answer has; never a token."""
    server, tokens = manned
    with server.client(tokens["one"]) as client:
        sent = client.post("/v1/traces", files={"file": ("t.tgz", tar_of(trace))}, headers={"X-Request-Id": "mine-1"})
        assert sent.headers["x-request-id"] == "mine-1"
        body = {"traces": [sent.json()["id"]], "cluster": CLUSTER, "options": QUICK, "report": False}
        solved = client.post("/v1/placements", json=body)
        refused = client.get("/v1/jobs?token=plc_in_the_query", headers={"Authorization": "Bearer plc_wrong"})
        read = client.get("/v1/jobs")
    [uploaded] = lines(server, "mine-1")
    assert (uploaded["log"], uploaded["name"], uploaded["status"]) == ("audit", "one", 201)
    assert uploaded["id"] == sent.json()["id"]
    assert {"time", "seconds", "method", "route", "path", "caller", "from"} <= set(uploaded)
    [placed] = lines(server, solved.headers["x-request-id"])
    assert (placed["id"], placed["route"]) == (solved.json()["id"], "/v1/placements")
    [denied] = lines(server, refused.headers["x-request-id"])
    assert (denied["log"], denied["status"]) == ("audit", 401) and "name" not in denied
    [looked] = lines(server, read.headers["x-request-id"])
    assert (looked["log"], looked["status"]) == ("access", 200)
    text = server.log.read_text()
    assert not [word for word in (*tokens.values(), "plc_in_the_query", "plc_wrong") if word in text]


def test_an_id_of_a_request_forges_no_line(manned: tuple[Server, dict[str, str]]) -> None:
    """What is no plain id is replaced; a path is printed without what ends a line."""
    server, tokens = manned
    with server.client(tokens["one"]) as client:
        answer = client.delete("/v1/jobs/a%0a%7b%22log%22", headers={"X-Request-Id": 'x" y'})
    name = answer.headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{16}", name)
    for line in server.log.read_text().splitlines():
        if line.startswith("{"):
            json.loads(line)


def test_a_metrics_token_opens_the_metrics_alone(manned: tuple[Server, dict[str, str]], trace: Path) -> None:
    """Jobs by how long they ran and how they failed, the age of the queue, the disk and the process are in them."""
    server, tokens = manned
    with server.client(tokens["one"]) as client:
        body = {"traces": [upload(client, trace)], "cluster": CLUSTER, "options": QUICK, "report": False}
        solved = answered(client, "/v1/placements", body)
        assert solved.status_code == 200
        remembered = f"/v1/placements/{solved.headers['content-location'].rpartition('/')[2]}"
        assert client.get(remembered).content == client.get(remembered).content == solved.content
        caps = body | {"options": QUICK | {"rank_cap": 0.5}}
        failed = client.post("/v1/placements", json=caps)
        if failed.status_code == 202:
            wait_until(lambda: client.get(f"/v1/jobs/{failed.json()['id']}").json()["state"] == "failed")
    with server.client(tokens["scraper"]) as scraper:
        text = scraper.get("/metrics").text
        for path in ("/v1/jobs", "/v1/traces", "/v1/placements", "/", remembered):
            assert scraper.get(path).status_code == 403
        problem_of(scraper.post("/v1/traces", files={"file": ("t.tgz", b"")}), 403)
    assert re.search(r'placement_job_seconds_count\{kind="solve",state="done"\} [1-9]', text)
    for series in ("placement_queue_age_seconds 0.0", 'placement_disk_bytes{what="free"}', "process_open_fds"):
        assert series in text
    if failed.status_code == 202:
        assert re.search(r'placement_job_failures_total\{type="\w+"\} [1-9]', text)


def test_a_token_changes_only_its_own(manned: tuple[Server, dict[str, str]], trace: Path) -> None:
    """Another solver reads, and neither deletes nor cancels; an administrator may. Who sends a trace again does not
    take it over."""
    server, tokens = manned
    with (
        server.client(tokens["one"]) as one,
        server.client(tokens["two"]) as two,
        server.client(tokens["boss"]) as boss,
    ):
        name = upload(one, trace)
        assert upload(two, trace) == name
        body = {"traces": [name], "cluster": CLUSTER, "options": QUICK | {"seed": 5}, "report": False}
        answered(one, "/v1/placements", body)
        job = one.post("/v1/placements", json=body).json()["id"]
        assert two.get(f"/v1/placements/{job}").status_code == 200
        for refused in (
            two.delete(f"/v1/placements/{job}"),
            two.delete(f"/v1/jobs/{job}"),
            two.post(f"/v1/jobs/{job}/cancel"),
            two.post(f"/jobs/{job}/cancel"),
            two.delete(f"/v1/traces/{name}"),
        ):
            assert refused.status_code == 403, refused.url
        assert one.get(f"/v1/placements/{job}").status_code == 200
        assert one.delete(f"/v1/placements/{job}").status_code == 204
        assert boss.delete(f"/v1/traces/{name}").status_code == 204


def test_a_job_that_failed_can_be_deleted(manned: tuple[Server, dict[str, str]], trace: Path) -> None:
    """One that waits or runs not: 409 until it is cancelled."""
    server, tokens = manned
    with server.client(tokens["one"]) as client:
        forever = {"solver": "anneal", "bound": "none", "work_limit": 50_000_000_000}
        body = {"traces": [upload(client, trace)], "cluster": CLUSTER, "options": forever, "report": False}
        job = client.post("/v1/placements", json=body).json()["id"]
        assert "cancel" in problem_of(client.delete(f"/v1/jobs/{job}"), 409)["mend"]
        client.post(f"/v1/jobs/{job}/cancel")
        wait_until(lambda: client.get(f"/v1/jobs/{job}").json()["state"] == "cancelled")
        assert client.delete(f"/v1/jobs/{job}").status_code == 204
        problem_of(client.get(f"/v1/jobs/{job}"), 404)
        problem_of(client.delete(f"/v1/jobs/{job}"), 404)


def test_a_token_ends(manned: tuple[Server, dict[str, str]], run_cli: Any) -> None:
    """After its days: 401, and the list says when that was; no service opens because all tokens have ended."""
    server, _ = manned
    token = run_cli("token", "create", "short", "--days", "0.00004", "--data", server.data).stdout.strip()
    with server.client(token) as client:
        wait_until(lambda: client.get("/v1/jobs").status_code == 401, seconds=20)
        assert "no longer valid" in problem_of(client.get("/v1/jobs"), 401)["detail"]
    assert run_cli("token", "create", "never", "--days", "-1", "--data", server.data).code == 2
    assert run_cli("token", "delete", "short", "--data", server.data).code == 0


def test_a_token_that_was_used_says_when(manned: tuple[Server, dict[str, str]], run_cli: Any) -> None:
    """To the minute; one that was never used says so."""
    server, _ = manned
    token = run_cli("token", "create", "fresh", "--data", server.data).stdout.strip()

    def row() -> str:
        listed = run_cli("token", "list", "--data", server.data).stdout.splitlines()
        return next(line for line in listed if line.endswith("fresh"))

    assert row().count("never") == 2
    with server.client(token) as client:
        assert client.get("/v1/jobs").status_code == 200
    assert row().count("never") == 1
    assert time.strftime("%Y-%m-%d", time.gmtime()) in row()


def test_a_token_is_replaced(
    manned: tuple[Server, dict[str, str]], run_cli: Any, write_trace: Any, tmp_path: Path
) -> None:
    """The new one owns what the old one made; the old one is valid as long as is said, or not at all."""
    server, _ = manned
    data = ("--data", server.data)
    old = run_cli("token", "create", "turning", *data).stdout.strip()
    with server.client(old) as client:
        name = upload(client, write_trace(tmp_path / "own", tokens=60, num_experts=8).folder)
    new = run_cli("token", "replace", "turning", "--overlap", "3600", *data).stdout.strip()
    newest = run_cli("token", "replace", "turning", *data)
    assert newest.code == 0
    for token, statuses in ((old, {401}), (new, {200, 401}), (newest.stdout.strip(), {200})):
        with server.client(token) as client:
            wait_until(lambda client=client, want=statuses: client.get("/v1/jobs").status_code in want, seconds=5)  # type: ignore[misc]
    with server.client(new) as client:
        wait_until(lambda: client.get("/v1/jobs").status_code == 401, seconds=5)
    with server.client(newest.stdout.strip()) as client:
        assert client.delete(f"/v1/traces/{name}").status_code == 204
    overlapping = run_cli("token", "replace", "turning", "--overlap", "3600", *data).stdout.strip()
    for token in (newest.stdout.strip(), overlapping):
        with server.client(token) as client:
            assert client.get("/v1/jobs").status_code == 200
    for wrong in (("nobody",), ("turning", "--overlap", "-1"), ("turning", "--overlap", "nan")):
        refused = run_cli("token", "replace", *wrong, *data)
        assert refused.code == 2 and "Traceback" not in refused.stderr


def start(*arguments: object) -> subprocess.CompletedProcess[str]:
    """What a service that does not start says."""
    command = [sys.executable, "-c", "from placement.cli import main; main()", "serve", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_second_service_of_a_folder_does_not_start(server: Server, trace: Path) -> None:
    """It would take the jobs that run in the first: one line, which names the process."""
    refused = start("--data", server.data, "--port", 1)
    assert refused.returncode == 2
    assert len(refused.stderr.strip().splitlines()) == 1
    assert f"process {server.pid}" in refused.stderr
    assert httpx.get(f"{server.url}/healthz").status_code == 200


def test_what_stops_a_start_is_told_in_one_line(tmp_path: Path, server: Server) -> None:
    """A port that is taken, a file that is no database, a queue that is none, a folder that is a file."""
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "store.sqlite").write_bytes(b"no database at all" * 1000)
    (tmp_path / "queue").mkdir()
    (tmp_path / "queue" / "queue.sqlite").write_bytes(b"no database at all" * 1000)
    (tmp_path / "file").write_text("x")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    for arguments, said in (
        (("--data", tmp_path / "ok", "--port", server.port), "give another --port"),
        (("--data", tmp_path / "rows", "--port", free), "store.sqlite cannot be used"),
        (("--data", tmp_path / "queue", "--port", free), "queue.sqlite cannot be used"),
        (("--data", tmp_path / "file", "--port", free), "cannot make the folder"),
    ):
        refused = start(*arguments)
        assert refused.returncode == 2, refused.stderr
        assert said in refused.stderr
        assert len([line for line in refused.stderr.strip().splitlines() if " INFO " not in line]) == 1, refused.stderr


def test_what_is_left_is_never_less_than_nothing() -> None:
    """Though a clock was set back since the stage began, or another host's is ahead."""
    row = JobRow(
        id="a", kind="solve", state=RUNNING, stage="solve", done=1, total=4, created=0.0, request={"traces": []}
    )
    row.stage_started = time.time() + 100
    assert JobAnswer.of(row).progress.left_s == 0.0
    row.stage_started = time.time() - 10
    assert JobAnswer.of(row).progress.left_s == pytest.approx(30, abs=1)


def test_the_queue_forgets_what_ended(tmp_path: Path, trace: Path) -> None:
    """Rows of DBOS of jobs that ended over an hour ago are gone after the next start; what ended just now is not, and
    placements stay."""
    server = Server(data=tmp_path / "data").start()
    queue = server.data / "queue.sqlite"

    def rows() -> dict[str, int]:
        with sqlite3.connect(queue, timeout=30) as connection:
            tables = ("workflow_status", "operation_outputs")
            return {name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables}

    try:
        with server.client() as client:
            body: dict[str, Any] = {"traces": [upload(client, trace)], "cluster": CLUSTER, "report": False}
            for seed in range(3):
                assert answered(client, "/v1/placements", body | {"options": QUICK | {"seed": seed}}).status_code == 200
            wait_until(lambda: rows()["workflow_status"] == 3)
            server.kill(signal.SIGTERM)
            with sqlite3.connect(queue) as connection:
                columns = [row[1] for row in connection.execute("PRAGMA table_info(workflow_status)")]
                for name in {"created_at", "updated_at", "completed_at"} & set(columns):
                    connection.execute(
                        f"UPDATE workflow_status SET {name} = {name} - 7200000 WHERE rowid IN "
                        "(SELECT rowid FROM workflow_status LIMIT 2)"
                    )
            server.start()
            wait_until(lambda: rows()["workflow_status"] == 1)
            assert rows()["operation_outputs"] <= 2
            assert len(client.get("/v1/placements").json()) == 3
            assert client.post(
                "/v1/placements", params={"wait": 5}, json=body | {"options": QUICK | {"seed": 0}}
            ).is_success
    finally:
        server.kill()
