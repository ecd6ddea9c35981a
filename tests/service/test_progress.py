"""What a job tells while it runs: layers done, best so far, time left."""

from __future__ import annotations

import json

import httpx
import pytest

CLUSTER = {"num_nodes": 2, "gpus_per_node": 2}


def test_a_job_that_is_done_tells_the_objective_of_its_placement(client: httpx.Client, trace_id: str) -> None:
    """The last progress is kept; `best` is then the mean of the objectives in the placement file."""
    body = {"traces": [trace_id], "cluster": CLUSTER, "options": {"work_limit": 300, "bound": "none", "seed": 31}}
    job = client.post("/v1/placements", json=body).json()["id"]
    with client.stream("GET", f"/v1/jobs/{job}/events") as stream:
        events = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
    layers = client.get(f"/v1/placements/{job}").json()["layers"]
    progress = client.get(f"/v1/jobs/{job}").json()["progress"]
    assert progress == events[-1]["progress"]
    assert progress["best"] == pytest.approx(sum(layer["objective"] for layer in layers) / len(layers))
    assert (progress["stage"], progress["done"], progress["total"]) == ("evaluate", 2, 2)


def test_a_job_that_runs_tells_how_far_it_is(client: httpx.Client, trace_id: str) -> None:
    """Within a second of its beginning; a layer that is not solved yet has no best."""
    options = {"solver": "anneal", "bound": "none", "work_limit": 2_000_000_000, "seed": 32}
    job = client.post("/v1/placements", json={"traces": [trace_id], "cluster": CLUSTER, "options": options}).json()[
        "id"
    ]
    with client.stream("GET", f"/v1/jobs/{job}/events") as stream:
        for line in stream.iter_lines():
            if line.startswith("data: ") and (now := json.loads(line[6:]))["progress"]["stage"] == "solve":
                break
    client.post(f"/v1/jobs/{job}/cancel")
    assert now["progress"] == {"stage": "solve", "done": 0, "total": 2, "best": None, "left_s": None}
