"""Studies and fronts over REST are what the command line writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests_service import Server, answered, problem_of

from placement import Cluster, Options
from placement.client import Client

CLUSTER = {"num_nodes": 2, "gpus_per_node": 2}
LITTLE = {"work_limit": 200, "bound": "none"}


def test_a_study_is_what_the_command_line_says(
    client: httpx.Client, server: Server, trace: Path, trace_id: str, run_cli: Any
) -> None:
    """The same JSON, and a page; the job says where they are, and the client answers the same."""
    answer = answered(client, "/v1/study", {"traces": [trace_id], "num_nodes": 2, "seed": 1})
    assert answer.status_code == 200, answer.text
    said = run_cli("traces", "info", trace, "--study", "--nodes", 2, "--seed", 1, "--json")
    assert said.code == 0, said.stderr
    assert answer.json() == json.loads(said.stdout)
    job = client.get(answer.headers["location"]).json()
    assert (job["kind"], job["result"]) == ("study", answer.headers["content-location"])
    assert client.get(job["result"]).content == answer.content
    page = client.get(f"{job['result']}/page")
    assert page.headers["content-type"].startswith("text/html") and "<h1>" in page.text
    assert Client(server.url).study([trace_id], num_nodes=2, seed=1) == answer.json()
    problem_of(client.get(f"/v1/jobs/{job['id']}/front"), 404)


def test_a_front_is_what_the_command_line_writes(
    client: httpx.Client, server: Server, trace: Path, trace_id: str, run_cli: Any, tmp_path: Path
) -> None:
    """Its document, its picture and each of its maps, byte for byte; nothing else is a map."""
    answer = answered(client, "/v1/front", {"traces": [trace_id], "cluster": CLUSTER, "options": LITTLE})
    assert answer.status_code == 200, answer.text
    cluster = ("--nodes", 2, "--gpus-per-node", 2, "--work-limit", 200, "--bound", "none")
    done = run_cli("front", trace, *cluster, "-o", tmp_path / "p.json", "--front-out", tmp_path / "front")
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
    ("path", "where", "change"),
    [
        ("/v1/study", "body", {"num_nodes": 99}),
        ("/v1/study", "body", {"by": "color"}),
        ("/v1/front", "body/options/max_moves", {"options": {"max_moves": 3}, "cluster": CLUSTER}),
        ("/v1/front", "body/options", {"options": {"objective": "balance"}, "cluster": CLUSTER}),
        ("/v1/front", "body/cluster", {"cluster": {"num_nodes": 3, "gpus_per_node": 1}}),
    ],
)
def test_what_cannot_be_done_is_told_at_once(
    client: httpx.Client, trace_id: str, path: str, where: str, change: dict[str, Any]
) -> None:
    """422 with the place of the fault in words of the body, 404 of a trace that is not there, and no job."""
    jobs = client.get("/v1/jobs").json()
    answer = client.post(path, json={"traces": [trace_id]} | change)
    assert where in [fault["where"] for fault in problem_of(answer, 422)["faults"]]
    assert "--" not in answer.text and "FILE" not in answer.text and '"nodes=' not in answer.text
    cluster = {"cluster": CLUSTER} if path == "/v1/front" else {}
    problem_of(client.post(path, json={"traces": ["none"]} | cluster), 404)
    assert client.get("/v1/jobs").json() == jobs


def test_the_page_lists_such_jobs(client: httpx.Client, trace_id: str) -> None:
    """A job of each kind that is not done has a line on the page, and a page of its own."""
    for path, body in (("/v1/study", {"by": "category"}), ("/v1/front", {"cluster": CLUSTER, "options": LITTLE})):
        job = client.post(path, json={"traces": [trace_id], **body}).json()["id"]
        assert client.get("/").status_code == 200
        assert client.get(f"/jobs/{job}").status_code in (200, 303)
        client.post(f"/v1/jobs/{job}/cancel")
