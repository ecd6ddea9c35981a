"""No job, token or request holds the service up: what cannot be done is refused at once, the rest takes turns."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from placement_api.bodies import PlacementBody
from placement_api.jobs.task import Task
from placement_api.jobs.turns import next_turn
from placement_api.jobs.work import compute
from placement_api.service import open_store
from placement_api.settings import Settings
from placement_api.store.tables import DONE, QUEUED, RUNNING, JobRow
from tests_service import Server, problem_of, upload, wait_until

from placement.client import Client
from placement.errors import TYPE_URI, TimeLimitError
from placement.support.progress import ignore

CLUSTER = {"num_nodes": 2, "gpus_per_node": 2}
SHORT = {"solver": "anneal", "bound": "none", "work_limit": 1_000}
FOREVER = SHORT | {"work_limit": 50_000_000_000}


def submit(client: httpx.Client, trace: str, options: dict[str, Any], seed: int) -> str:
    body = {"traces": [trace], "cluster": CLUSTER, "options": options | {"seed": seed}, "report": False}
    answer = client.post("/v1/placements", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def state(client: httpx.Client, job: str) -> str:
    return str(client.get(f"/v1/jobs/{job}").json()["state"])


def test_a_job_without_end_ends_and_the_next_is_solved(tmp_path: Path, trace: Path) -> None:
    """At the service's limit, which counts anew after a restart: failed, with what, which limit and how to mend it; its
    process is gone, and the job behind it gets the bytes of a quiet solve."""
    body = PlacementBody(traces=["t"], cluster=CLUSTER, options=SHORT | {"seed": 1}, report=False)
    quiet = {"data": str(tmp_path / "quiet"), "blobs": "", "workers": 1}
    alone = compute(Task(kind="solve", request=body.model_dump(), traces=[str(trace)], top_k=2, **quiet), ignore)
    server = Server(data=tmp_path / "data", arguments=("--max-jobs", "1", "--job-time-limit", "4"))
    try:
        server.start()
        with server.client() as client:
            uploaded = upload(client, trace)
            endless, behind = submit(client, uploaded, FOREVER, 0), submit(client, uploaded, SHORT, 1)
            wait_until(lambda: state(client, endless) == "running")
            server.kill()
        server.start()
        with server.client() as client:
            wait_until(lambda: state(client, endless) == "failed")
            ended = client.get(f"/v1/jobs/{endless}").json()
            assert 4 <= ended["finished"] - ended["started"] < 30
            assert ended["error"]["type"] == f"{TYPE_URI}TimeLimitError"
            assert "after 4 s" in ended["error"]["detail"]
            assert all(name in ended["error"]["mend"] for name in ("work_limit", "--job-time-limit"))
            for _ in range(5):  # a machine that is busy with other tests may need longer than the limit
                wait_until(lambda job=behind: state(client, job) in ("done", "failed"))  # type: ignore[misc]
                if state(client, behind) == "done":
                    break
                behind = submit(client, uploaded, SHORT, 1)
            answer = client.get(f"/v1/placements/{behind}").content
            assert hashlib.sha256(answer).hexdigest() == alone.files["placement"]
            wait_until(lambda: not _solvers(server))
        with pytest.raises(TimeLimitError, match="after 4 s"):
            Client(server.url).wait(endless)
    finally:
        server.kill()


def _solvers(server: Server) -> list[psutil.Process]:
    """What the server of forks has forked."""
    return [job for child in psutil.Process(server.pid).children() for job in child.children()]


@pytest.fixture
def shared(run_cli: Any) -> Iterator[Callable[..., tuple[Server, dict[str, str]]]]:
    """A server that solves one job at a time, with tokens a, b and c; it ends with the test, and so do its jobs."""
    made_here: list[Server] = []

    def make(data: Path, *arguments: str) -> tuple[Server, dict[str, str]]:
        url = arguments[arguments.index("--database-url") :][:2] if "--database-url" in arguments else ()
        tokens = {}
        for name in "abc":
            made = run_cli("token", "create", name, "--data", data, *url)
            assert made.code == 0, made.stderr
            tokens[name] = made.stdout.strip()
        made_here.append(Server(data=data, arguments=("--max-jobs", "1", *arguments)))
        return made_here[-1].start(), tokens

    yield make
    for server in made_here:
        server.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_tokens_take_turns(
    kind: str,
    request: pytest.FixtureRequest,
    shared: Callable[..., tuple[Server, dict[str, str]]],
    tmp_path: Path,
    trace: Path,
) -> None:
    """A token that queued eight jobs holds up neither the one job of another nor the two of a third."""
    url = () if kind == "sqlite" else ("--database-url", str(request.getfixturevalue("database_url")))
    server, tokens = shared(tmp_path / "data", *url)
    with server.client(tokens["a"]) as a, server.client(tokens["b"]) as b, server.client(tokens["c"]) as c:
        uploaded = upload(a, trace)
        first = submit(a, uploaded, FOREVER, 0)
        wait_until(lambda: state(a, first) == "running")
        names = {submit(a, uploaded, SHORT, number): f"a{number}" for number in range(1, 9)}
        names[submit(b, uploaded, SHORT, 11)] = "b1"
        names |= {submit(c, uploaded, SHORT, 20 + number): f"c{number}" for number in (1, 2)}
        a.post(f"/v1/jobs/{first}/cancel")
        wait_until(lambda: {state(a, job) for job in names} == {"done"}, seconds=180)
        rows = {row["id"]: row["started"] for row in a.get("/v1/jobs").json()}
    order = [names[job] for job in sorted(names, key=lambda job: rows[job])]
    assert order == ["a1", "b1", "c1", "a2", "c2", *(f"a{number}" for number in range(3, 9))]


def test_no_order_of_requests_makes_a_job_wait_for_ever(tmp_path: Path) -> None:
    """Whoever comes when: from when a token has a job that waits until one of its jobs begins, each other token begins
    two at most. Rows of ended jobs may be gone."""
    database = open_store(Settings(data=tmp_path))
    chance = random.Random(0)
    with database.session() as session:
        served: dict[str, Counter[str]] = {}  # of each token that waits: what began meanwhile
        most = 0
        for number in range(600):
            if chance.random() < 0.55:
                caller = chance.choice("aaaabbcd")
                burst = 12 if chance.random() < 0.05 else 1
                for one in range(burst):
                    turn = next_turn(session, caller)
                    session.add(_row(f"{number}-{one}", caller, turn, created=number + one / 100))
                    session.flush()
                served.setdefault(caller, Counter())
                continue
            rows = session.query(JobRow).all()
            for row in rows:
                if row.state == RUNNING:
                    row.state = DONE
                elif row.state == DONE and chance.random() < 0.5:
                    session.delete(row)
            queued = sorted((row for row in rows if row.state == QUEUED), key=lambda row: (row.turn, row.created))
            if queued:
                queued[0].state = RUNNING
                mine = queued[0].caller
                most = max([most, *served.pop(mine).values()])
                for others in served.values():
                    others[mine] += 1
                if any(row.caller == mine for row in queued[1:]):
                    served[mine] = Counter()
            session.flush()
        assert most == 2
        session.rollback()
    database.close()


def _row(name: str, caller: str, turn: int, created: float) -> JobRow:
    return JobRow(
        id=name, kind="solve", state=QUEUED, request={}, digest=name, created=created, caller=caller, turn=turn
    )


def test_a_token_may_queue_so_many_jobs(
    shared: Callable[..., tuple[Server, dict[str, str]]], tmp_path: Path, trace: Path
) -> None:
    """429 with Retry-After beyond it; not for a request that is queued already, nor for another token, and no longer
    once a job is cancelled."""
    server, tokens = shared(tmp_path / "data", "--max-queued", "2")
    with server.client(tokens["a"]) as a, server.client(tokens["b"]) as b:
        uploaded = upload(a, trace)
        first = submit(a, uploaded, FOREVER, 0)
        wait_until(lambda: state(a, first) == "running")
        waiting = [submit(a, uploaded, FOREVER, seed) for seed in (1, 2)]
        body = {"traces": [uploaded], "cluster": CLUSTER, "options": FOREVER | {"seed": 3}, "report": False}
        refused = a.post("/v1/placements", json=body)
        assert "--max-queued" in problem_of(refused, 429)["mend"]
        assert int(refused.headers["retry-after"]) > 0
        assert submit(a, uploaded, FOREVER, 2) == waiting[1]
        other = submit(b, uploaded, FOREVER, 4)
        assert a.post(f"/v1/jobs/{waiting[0]}/cancel").status_code == 200
        last = submit(a, uploaded, FOREVER, 3)
        for client, job in ((b, other), (a, last), (a, waiting[1]), (a, first)):
            assert client.post(f"/v1/jobs/{job}/cancel").status_code == 200


@pytest.mark.parametrize("value", ["0", "-1", "nan"])
def test_a_limit_of_nothing_is_refused(value: str, tmp_path: Path, run_cli: Any) -> None:
    """A service that could run no job does not start."""
    refused = run_cli("serve", "--data", tmp_path / "data", "--job-time-limit", value)
    assert refused.code == 2 and "job_time_limit_s" in refused.stderr
