"""Advice, studies and fronts over REST and on the page are what the command line says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests_service import Server, answered, problem_of, wait_until

from placement import Cluster, Options
from placement.client import Client

CLUSTER = {"num_nodes": 2, "gpus_per_node": 2}
WORDS = ("--nodes", 2, "--gpus-per-node", 2, "--work-limit", 200)
STUDY = {"num_nodes": 2, "seed": 1}
BODIES: dict[str, dict[str, Any]] = {
    "advice": {"cluster": CLUSTER, "options": {"work_limit": 200}},
    "study": STUDY,
    "front": {"cluster": CLUSTER, "options": {"work_limit": 200, "bound": "none"}},
}


@pytest.mark.parametrize(
    ("kind", "name", "command"),
    [
        ("study", "study", ("traces", "info", "--study", "--nodes", 2, "--seed", 1)),
        ("advise", "advice", ("advise", *WORDS)),
    ],
)
def test_an_analysis_is_what_the_command_line_says(
    kind: str, name: str, command: tuple[object, ...], client: httpx.Client, trace: Path, trace_id: str, run_cli: Any
) -> None:
    """The same JSON, and a page; the job says where they are, and made nothing of another kind."""
    answer = answered(client, f"/v1/{name}", {"traces": [trace_id], **BODIES[name]})
    assert answer.status_code == 200, answer.text
    said = run_cli(*command, trace, "--json")
    assert said.code == 0, said.stderr
    assert answer.json() == json.loads(said.stdout)
    job = client.get(answer.headers["location"]).json()
    assert (job["kind"], job["result"]) == (kind, answer.headers["content-location"])
    assert client.get(job["result"]).content == answer.content
    page = client.get(f"{job['result']}/page")
    assert page.headers["content-type"].startswith("text/html") and "<h1>" in page.text
    problem_of(client.get(f"/v1/jobs/{job['id']}/front"), 404)
    problem_of(client.get(f"/v1/placements/{job['id']}"), 404)


def test_the_client_gets_the_same_study(client: httpx.Client, server: Server, trace_id: str) -> None:
    """The client's answer is that of REST."""
    answer = answered(client, "/v1/study", {"traces": [trace_id], **STUDY})
    assert Client(server.url).study([trace_id], num_nodes=2, seed=1) == answer.json()


def test_a_front_is_what_the_command_line_writes(
    client: httpx.Client, server: Server, trace: Path, trace_id: str, run_cli: Any, tmp_path: Path
) -> None:
    """Its document, its picture and each of its maps, byte for byte; nothing else is a map."""
    answer = answered(client, "/v1/front", {"traces": [trace_id], **BODIES["front"]})
    assert answer.status_code == 200, answer.text
    options = (*WORDS, "--bound", "none")
    done = run_cli("front", trace, *options, "-o", tmp_path / "p.json", "--front-out", tmp_path / "front")
    assert done.code == 0, done.stderr
    written = {path.name: path.read_bytes() for path in (tmp_path / "front").iterdir()}
    assert written.pop("front.json") == answer.content
    where = answer.headers["content-location"]
    assert client.get(where).content == answer.content
    plot = client.get(f"{where}/plot")
    assert plot.headers["content-type"] == "image/svg+xml" and plot.content == written.pop("front.svg")
    assert len(written) > 1
    front, maps = Client(server.url).front(
        [trace_id], Cluster.fit(8, num_nodes=2, gpus_per_node=2), Options(work_limit=200, bound="none")
    )
    assert front == answer.json() and maps == written
    for name in ("front", "plot", "none"):
        problem_of(client.get(f"{where}/maps/{name}"), 404)


@pytest.mark.parametrize(
    ("name", "where", "change"),
    [
        ("study", "body", {"num_nodes": 99}),
        ("study", "body", {"by": "color"}),
        ("front", "body/options/max_moves", {"options": {"max_moves": 3}}),
        ("front", "body/options", {"options": {"objective": "balance"}}),
        ("front", "body/cluster", {"cluster": {"num_nodes": 3, "gpus_per_node": 1}}),
        ("advice", "body/cluster", {"cluster": {"num_nodes": 3, "gpus_per_node": 1}}),
        ("advice", "body/options/solver", {"options": {"solver": "none"}}),
        ("advice", "body/options/max_moves", {"options": {"max_moves": 3}}),
        ("advice", "body/step_tokens", {"step_tokens": 0}),
    ],
)
def test_what_cannot_be_done_is_told_at_once(
    client: httpx.Client, trace_id: str, name: str, where: str, change: dict[str, Any]
) -> None:
    """422 with the place of the fault in words of the body, 404 of a trace that is not there, and no job."""
    jobs = client.get("/v1/jobs").json()
    answer = client.post(f"/v1/{name}", json={"traces": [trace_id], **BODIES[name], **change})
    assert where in [fault["where"] for fault in problem_of(answer, 422)["faults"]]
    assert "--" not in answer.text and "FILE" not in answer.text and '"nodes=' not in answer.text
    problem_of(client.post(f"/v1/{name}", json={"traces": ["none"], **BODIES[name]}), 404)
    assert client.get("/v1/jobs").json() == jobs


def test_the_page_lists_such_jobs(client: httpx.Client, trace_id: str) -> None:
    """A job of each kind that is not done has a line on the page, and a page of its own."""
    for name, change in (("study", {"by": "category"}), ("front", {}), ("advice", {"holdout": 0.3})):
        job = client.post(f"/v1/{name}", json={"traces": [trace_id], **BODIES[name], **change}).json()["id"]
        assert client.get("/").status_code == 200
        assert client.get(f"/jobs/{job}").status_code in (200, 303)
        client.post(f"/v1/jobs/{job}/cancel")


@pytest.mark.parametrize(("asked", "shown"), [("advise", "advice"), ("front", "against imbalance"), ("study", "study")])
def test_the_page_of_a_trace_asks_for_more_than_a_solve(
    client: httpx.Client, trace_id: str, asked: str, shown: str
) -> None:
    """A button beside Solve sends the same form; the job's page leads to the answer, and so does the trace's page."""
    where = f"/traces/{trace_id}"
    assert f'formaction="{where}/{asked}"' in client.get(where).text
    form = CLUSTER | {"redundant_experts": 0, "bound": "none", "robust": "", "holdout": "0.25"}
    begun = client.post(f"{where}/{asked}", data=form)
    assert begun.status_code == 303, begun.text
    job = begun.headers["location"]
    assert shown in client.get("/").text or client.get(job).status_code == 303
    wait_until(lambda: client.get(job).status_code == 303, seconds=120)
    page = client.get(client.get(job).headers["location"])
    assert page.status_code == 200 and "<h1>" in page.text
    for link in re.findall(r'(?:href|src)="(/v1/[^"]+)"', page.text):
        assert client.get(link).status_code == 200, link
    assert f'<a href="{job}">' in client.get(where).text.partition("Other answers")[2]
    wrong = client.post(f"{where}/{asked}", data=form | {"num_nodes": "99"})
    assert wrong.status_code == 422 and "<form" in wrong.text and 'role="alert"' in wrong.text
