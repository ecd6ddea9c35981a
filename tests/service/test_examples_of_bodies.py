"""The examples of bodies in the OpenAPI document are requests that the service takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
from named import promoted, published
from tests_service import answered, tar_of

NAME = "examples/decode"
ALIAS = f"{NAME}@production"


def test_the_examples_run(
    client: httpx.Client, trace_id: str, three: list[str], tmp_path: Path, write_trace: Any
) -> None:
    """Each as it stands, but for the ids that it shortens: none is refused."""
    routed = _with_homes(client, tmp_path / "small", write_trace)
    published(client, NAME, three)
    promoted(client, ALIAS, 1)
    promoted(client, ALIAS, 2)
    places = {"placement": three[0], "name": NAME, "alias": "production"}
    ran = 0
    for method, path, example in _examples(client.get("/openapi.json").json()):
        body = json.loads(json.dumps(example), object_hook=lambda one: _filled(one, trace_id, three[0]))
        own = {"placement": routed} if path.endswith(("/route", "/group")) else {}
        answer = client.request(method, path.format(**places | own), json=body)
        assert answer.is_success, (method, path, answer.text)
        if answer.status_code == 202:
            client.post(f"{answer.headers['location']}/cancel")
        ran += 1
    assert ran >= 11


def _examples(document: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """(method, path, body) of all; what is undone by another comes before that."""
    found = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if content is None:
                continue
            schema = document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
            found += [(method.upper(), path, example) for example in schema.get("examples", [])]
    return sorted(found, key=lambda one: (one[1].endswith("/rollback"), one[1]))


def _filled(body: dict[str, Any], trace: str, placement: str) -> dict[str, Any]:
    ids = {"traces": [trace], "placement": placement}
    return {name: ids[name] if name in ids and "…" in str(value) else value for name, value in body.items()}


def _with_homes(client: httpx.Client, folder: Path, write_trace: Any) -> str:
    """The id of a placement with a router, of the examples' shape: one layer of four experts, two nodes."""
    write_trace(folder, num_layers=1, num_experts=4, tokens=300, requests=12, spread=1.5)
    trace = client.post("/v1/traces", files={"file": ("small.tar.gz", tar_of(folder))}).json()["id"]
    options = {"work_limit": 100, "bound": "none"}
    body = {"traces": [trace], "cluster": {"num_nodes": 2, "gpus_per_node": 1}, "options": options, "group": {}}
    answer = answered(client, "/v1/placements", body)
    assert answer.status_code == 200, answer.text
    return str(answer.headers["content-location"].rpartition("/")[2])
