"""No job, token or request holds the service up: what cannot be done is refused at once, the rest takes turns."""

from __future__ import annotations

import hashlib
import json
import math
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
from tests_service import Server, answered, problem_of, tar_of, wait_until

from placement.client import Client
from placement.errors import TYPE_URI, TimeLimitError
from placement.support.progress import ignore

CLUSTER = {"num_nodes": 2, "gpus_per_node": 2}
SHORT = {"solver": "anneal", "bound": "none", "work_limit": 1_000}
FOREVER = SHORT | {"work_limit": 50_000_000_000}
COUNTS = {"top_k": 1, "counts": [[9, 1, 4, 4, 1, 1, 1, 1], [2, 8, 6, 2, 1, 1, 1, 1]]}


def submit(client: httpx.Client, trace: str, options: dict[str, Any], seed: int) -> str:
    body = {"traces": [trace], "cluster": CLUSTER, "options": options | {"seed": seed}, "report": False}
    answer = client.post("/v1/placements", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def upload(client: httpx.Client, trace: Path) -> str:
    answer = client.post("/v1/traces", files={"file": ("t.tgz", tar_of(trace))})
    assert answer.status_code == 201, answer.text
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


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("body/options", {"options": {"seed": -1}}),
    ("body/options", {"options": {"work_limit": 2**63}}),
    ("body/options", {"options": {"max_moves": 2**63}}),
    ("body/options", {"options": {"balance_weight": math.nan}}),
    ("body/options/work_limit", {"options": {"work_limit": 9_000_000_000_000}}),
    ("body/options/time_limit_s", {"options": {"time_limit_s": 7200}}),
    ("body/options/time_limit_s", {"options": {"time_limit_s": math.inf}}),
    ("body/options/solver", {"options": {"solver": "none"}}),
    ("body/options/max_moves", {"options": {"max_moves": 3}}),
    ("body/cluster", {"cluster": {"num_nodes": 3, "gpus_per_node": 1}}),
    ("body/cluster", {"cluster": {"num_nodes": 65}}),
    ("body/cluster", {"cluster": {"num_nodes": 2, "gpus_per_node": 1_000_000, "slots_per_gpu": 1}}),
    ("body/cluster", {"cluster": CLUSTER | {"inter_gbps": math.nan}}),
    ("body/cluster", {"cluster": CLUSTER | {"gpu_speeds": [1.0]}}),
    ("body/holdout", {"holdout": 1.0}),
    ("body/holdout", {"holdout": math.nan}),
    ("body/robust", {"robust": "weekday"}),
    ("body/robust", {"robust": "windows:1"}),
    ("body/robust", {"robust": "domain", "group": {}}),
    ("body/group", {"group": {"tolerance": -1.0}}),
    ("body/group", {"group": {"tolerance": math.nan}}),
    ("body/group", {"group": {"home_from": "the middle"}}),
    ("body/group", {"group": {}, "cluster": {"num_nodes": 1, "gpus_per_node": 2}}),
    ("body/group", {"group": {}, "options": {"objective": "balance"}}),
    ("body/options/engine", {"options": {"engine": "lmdeploy"}, "cluster": CLUSTER | {"redundant_experts": 4}}),
    ("body/options", {"options": {"engine": "vlm"}}),
]


@pytest.mark.parametrize(("where", "change"), WRONG)
def test_what_cannot_be_done_is_told_when_the_request_comes(
    client: httpx.Client, trace_id: str, where: str, change: dict[str, Any]
) -> None:
    """422 with the place of the fault, and no job."""
    _refused(client, {"traces": [trace_id], "cluster": CLUSTER} | change, where)


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("body/options/objective", {}),
        ("body/robust", {"options": {"objective": "balance"}, "robust": "domain"}),
        ("body/group", {"options": {"objective": "balance"}, "group": {}}),
    ],
)
def test_what_counts_do_not_say_is_told_when_the_request_comes(
    client: httpx.Client, where: str, change: dict[str, Any]
) -> None:
    """The row of the trace says that it is counts."""
    _refused(client, {"counts": COUNTS, "cluster": CLUSTER} | change, where)


def test_what_does_not_go_together_is_told_when_the_request_comes(
    client: httpx.Client, trace_id: str, tmp_path: Path, write_trace: Any
) -> None:
    """Traces of two models, traces and counts, and a current placement of another cluster or model."""
    other = upload(client, write_trace(tmp_path / "other", num_experts=16, tokens=100).folder)
    made = answered(client, "/v1/placements", {"traces": [other], "cluster": CLUSTER, "options": SHORT})
    current = made.headers["content-location"].rpartition("/")[2]
    balance = {"counts": COUNTS, "cluster": CLUSTER, "options": {"objective": "balance"}}
    assert answered(client, "/v1/placements", balance).status_code == 200
    [counts, *_] = [row["id"] for row in client.get("/v1/traces").json() if row["kind"] == "counts"]
    plain = {"traces": [trace_id], "cluster": CLUSTER}
    _refused(client, plain | {"traces": [trace_id, other]}, "body/traces")
    _refused(client, plain | {"traces": [trace_id, counts]}, "body/traces")
    _refused(client, plain | {"current": current}, "body/current")
    _refused(client, {"traces": [other], "cluster": {"num_nodes": 4}, "current": current}, "body/current")
    _refused(client, {"traces": [other], "cluster": CLUSTER, "current": current, "group": {}}, "body/group")
    measure = f"/v1/placements/{current}/evaluate"
    for where, body in (
        ("body/traces", {"traces": [trace_id]}),
        ("body/traces", {"traces": [counts]}),
        ("body/transport", {"traces": [other], "transport": "pigeon"}),
        ("body/replica_choice", {"traces": [other], "replica_choice": "none"}),
    ):
        _refused(client, body, where, measure)
    jobs = client.get("/v1/jobs").json()
    problem_of(client.post("/v1/placements", params={"wait": 1e6}, json=plain | {"options": {"seed": 987}}), 422)
    assert client.get("/v1/jobs").json() == jobs


def test_every_fault_is_told(client: httpx.Client, trace_id: str) -> None:
    """Not only the first."""
    body = {"traces": [trace_id], "cluster": {"num_nodes": 3, "gpus_per_node": 1}, "options": {"solver": "none"}}
    faults = problem_of(client.post("/v1/placements", json=body), 422)["faults"]
    assert [fault["where"] for fault in faults] == ["body/cluster", "body/options/solver"]


def _refused(client: httpx.Client, body: dict[str, Any], where: str, path: str = "/v1/placements") -> None:
    jobs = client.get("/v1/jobs").json()
    content = json.dumps(body).encode()  # with NaN, which httpx does not send
    answer = client.post(path, content=content, headers={"Content-Type": "application/json"})
    faults = problem_of(answer, 422)["faults"]
    assert where in [fault["where"] for fault in faults]
    assert client.get("/v1/jobs").json() == jobs


@pytest.mark.parametrize("value", ["0", "-1", "nan"])
def test_a_limit_of_nothing_is_refused(value: str, tmp_path: Path, run_cli: Any) -> None:
    """A service that could run no job does not start."""
    refused = run_cli("serve", "--data", tmp_path / "data", "--job-time-limit", value)
    assert refused.code == 2 and "job_time_limit_s" in refused.stderr
