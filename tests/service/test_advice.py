"""Advice over REST and on the page is what `placement advise` says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
from tests_service import answered, problem_of, wait_until

CLUSTER = {"num_nodes": 2, "gpus_per_node": 2}
LITTLE = {"work_limit": 200}


def test_advice_is_what_the_command_line_says(client: httpx.Client, trace: Path, trace_id: str, run_cli: Any) -> None:
    """The same JSON, and a page; the job says where they are."""
    body = {"traces": [trace_id], "cluster": CLUSTER, "options": LITTLE}
    answer = answered(client, "/v1/advice", body)
    assert answer.status_code == 200, answer.text
    said = run_cli("advise", trace, "--nodes", 2, "--gpus-per-node", 2, "--work-limit", 200, "--json")
    assert said.code == 0, said.stderr
    assert answer.json() == json.loads(said.stdout)
    job = client.get(answer.headers["location"]).json()
    assert (job["kind"], job["result"]) == ("advise", answer.headers["content-location"])
    assert client.get(job["result"]).content == answer.content
    page = client.get(f"{job['result']}/page")
    assert page.headers["content-type"].startswith("text/html") and "<h1>" in page.text
    problem_of(client.get(f"/v1/placements/{job['id']}"), 404)


def test_what_cannot_be_advised_is_told_at_once(client: httpx.Client, trace_id: str) -> None:
    """422 with the place of the fault, and no job."""
    jobs = client.get("/v1/jobs").json()
    for where, change in (
        ("body/cluster", {"cluster": {"num_nodes": 3, "gpus_per_node": 1}}),
        ("body/options/solver", {"options": {"solver": "none"}}),
        ("body/options/max_moves", {"options": {"max_moves": 3}}),
        ("body/step_tokens", {"step_tokens": 0}),
    ):
        answer = client.post("/v1/advice", json={"traces": [trace_id], "cluster": CLUSTER} | change)
        assert where in [fault["where"] for fault in problem_of(answer, 422)["faults"]]
    problem_of(client.post("/v1/advice", json={"traces": ["none"], "cluster": CLUSTER}), 404)
    assert client.get("/v1/jobs").json() == jobs


def test_the_page_of_a_trace_asks_for_advice(client: httpx.Client, trace_id: str) -> None:
    """The button beside Solve sends the same form; the job's page leads to the advice."""
    assert f'formaction="/traces/{trace_id}/advise"' in client.get(f"/traces/{trace_id}").text
    form = {
        "num_nodes": "2",
        "gpus_per_node": "2",
        "redundant_experts": "0",
        "work_limit": "200",
        "robust": "",
        "holdout": "0.2",
    }
    begun = client.post(f"/traces/{trace_id}/advise", data=form)
    assert begun.status_code == 303, begun.text
    where = begun.headers["location"]
    assert "advice" in client.get("/").text or client.get(where).status_code == 303
    wait_until(lambda: client.get(where).status_code == 303, seconds=120)
    page = client.get(client.get(where).headers["location"])
    assert page.status_code == 200 and "<h1>" in page.text
    wrong = client.post(f"/traces/{trace_id}/advise", data=form | {"num_nodes": "3", "gpus_per_node": "1"})
    assert wrong.status_code == 422 and "<form" in wrong.text
