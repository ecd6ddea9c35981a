"""Placements under names: what tests of names and of pulls share."""

from __future__ import annotations

from typing import Any

import httpx
from tests_service import answered

CLUSTER = {"num_nodes": 2, "gpus_per_node": 2}


def solved(client: httpx.Client, trace_id: str, seed: int, **changes: Any) -> str:
    """The id of a placement for SGLang."""
    options = {"work_limit": 300, "bound": "none", "seed": seed, "engine": "sglang"}
    body = {"traces": [trace_id], "cluster": CLUSTER, "options": options} | changes
    answer = answered(client, "/v1/placements", body)
    assert answer.status_code == 200, answer.text
    return str(answer.headers["content-location"].rpartition("/")[2])


def different(client: httpx.Client, trace_id: str, number: int, **changes: Any) -> list[str]:
    """Ids of placements that differ."""
    return [solved(client, trace_id, seed, holdout=0.1 * seed, **changes) for seed in range(1, number + 1)]


def published(client: httpx.Client, name: str, ids: list[str]) -> None:
    """They are versions 1, 2, ... of the name."""
    for number, placement in enumerate(ids, 1):
        answer = client.post(f"/v1/names/{name}", json={"placement": placement, "note": f"week {number}"})
        assert answer.status_code == 201, answer.text
        assert answer.json()["version"] == number
        assert answer.headers["location"] == f"/v1/names/{name}@{number}"


def promoted(client: httpx.Client, where: str, version: int, **more: Any) -> dict[str, Any]:
    """What the service said of an alias that was moved."""
    answer = client.put(f"/v1/names/{where}", json={"version": version, **more})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())
