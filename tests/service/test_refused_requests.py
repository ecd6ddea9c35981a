"""What cannot be done is told when the request comes, with its place, and makes no job."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests_service import answered, problem_of, upload

CLUSTER = {"num_nodes": 2, "gpus_per_node": 2}
SHORT = {"solver": "anneal", "bound": "none", "work_limit": 1_000}
COUNTS = {"top_k": 1, "counts": [[9, 1, 4, 4, 1, 1, 1, 1], [2, 8, 6, 2, 1, 1, 1, 1]]}


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
