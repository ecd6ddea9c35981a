"""The OpenAPI document tells all that a client needs; answers and errors are what it says, in words of REST."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from placement_api.problems import OPTION, in_rest_words
from tests_service import Server, answered, problem_of, tar_of

from placement.cli import option_groups

CLUSTER = {"num_nodes": 2, "gpus_per_node": 2}
QUICK = {"solver": "linear", "bound": "none"}


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_it_says_who_may_ask_and_where(document: dict[str, Any]) -> None:
    """A scheme that every operation but those of health names, and a server."""
    [name] = document["components"]["securitySchemes"]
    assert document["components"]["securitySchemes"][name]["scheme"] == "bearer"
    open_ones = [what for what, one in operations(document).items() if not one["security"]]
    assert open_ones == ["get /healthz", "get /readyz"]
    assert all({name: []} in one["security"] for what, one in operations(document).items() if what not in open_ones)
    assert document["servers"][0]["url"] == "/"


def test_every_success_has_a_media_type(document: dict[str, Any]) -> None:
    """But those without a body."""
    bare = [
        (what, status)
        for what, one in operations(document).items()
        for status, answer in one["responses"].items()
        if status.startswith("2") and status != "204" and not answer.get("content")
    ]
    assert not bare


def test_choices_are_enumerated(document: dict[str, Any]) -> None:
    """Of the names that the library takes; others are refused as before."""
    options = document["components"]["schemas"]["Options"]["properties"]
    for name, some in {
        "solver": {"auto", "linear", "anneal"},
        "objective": {"locality", "balance", "time"},
        "transport": {"", "node"},
        "replica_choice": {"", "min-nodes"},
        "bound": {"quick", "none"},
        "engine": {None, "vllm"},
    }.items():
        assert some <= set(options[name]["enum"]), name
        assert options[name].get("default") in options[name]["enum"]
    evaluate = document["components"]["schemas"]["EvaluateBody"]["properties"]
    assert {"min-nodes"} <= set(evaluate["replica_choice"]["enum"])


def test_a_placement_is_what_the_document_says(client: httpx.Client, document: dict[str, Any], trace_id: str) -> None:
    """By a validator that knows nothing of us."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    body = {"traces": [trace_id], "cluster": CLUSTER, "options": QUICK, "report": False}
    answer = answered(client, "/v1/placements", body)
    schema = {"$ref": "#/components/schemas/PlacementFile", "components": document["components"]}
    jsonschema.validate(answer.json(), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(answer.json() | {"schema": "else"}, schema)


def test_one_call_answers_a_placement(client: httpx.Client, trace: Path) -> None:
    """Trace and request in one body; each of the three has an address, and is what three calls would have made."""
    request = {"cluster": CLUSTER, "options": QUICK, "report": False, "holdout": 0.25}
    for form in ({"request": json.dumps(request)}, {}):
        files: dict[str, Any] = {"file": ("t.tgz", tar_of(trace))}
        if not form:
            files["request"] = ("request.json", json.dumps(request), "application/json")
        answer = client.post("/v1/placements", params={"wait": 60}, data=form, files=files)
        assert answer.status_code == 200, answer.text
    where = re.findall(r"<(.*?)>", answer.headers["link"])
    assert client.get(where[0]).json()["num_tokens"] == 300
    assert client.get(answer.headers["location"]).json()["traces"] == [where[0].rpartition("/")[2]]
    assert client.get(answer.headers["content-location"]).content == answer.content
    plain = answered(client, "/v1/placements", request | {"traces": [where[0].rpartition("/")[2]]})
    assert plain.content == answer.content


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({}, "part 'request' is missing"),
        ({"request": "{"}, "EOF"),
        ({"request": '{"cluster": {"num_nodes": 2}, "traces": ["a"]}'}, "names traces"),
        ({"request": '{"cluster": {"num_nodes": 2, "color": 1}}'}, "color"),
        ({"request": '{"cluster": {"num_nodes": 2}}', "top_k": "many"}, "top_k"),
        ({"request": '{"cluster": {"num_nodes": 3, "gpus_per_node": 1}}'}, "cannot be shared"),
    ],
)
def test_one_call_that_cannot_be_done_is_told(
    client: httpx.Client, trace: Path, form: dict[str, str], said: str
) -> None:
    """400 or 422 with the reason, and no job."""
    jobs = client.get("/v1/jobs").json()
    answer = client.post("/v1/placements", data=form, files={"file": ("t.tgz", tar_of(trace))})
    assert answer.status_code in (400, 422)
    assert said in json.dumps(problem_of(answer, answer.status_code))
    assert client.get("/v1/jobs").json() == jobs
    problem_of(client.post("/v1/placements", files={"request": (None, '{"cluster": {"num_nodes": 2}}')}), 422)
    long = {"request": ("r.json", b" " * (5 << 20) + b"{}", "application/json"), "file": ("t.tgz", tar_of(trace))}
    problem_of(client.post("/v1/placements", files=long), 413)


def test_head_answers_where_get_does(client: httpx.Client, server: Server, trace_id: str) -> None:
    """The same headers, and no body."""
    for path in ("/healthz", "/v1/jobs", f"/v1/traces/{trace_id}", "/", "/metrics", "/v1/traces/none"):
        got, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (got.status_code, b"")
        assert head.headers["content-type"] == got.headers["content-type"]


def test_people_get_a_page_where_there_is_none(client: httpx.Client) -> None:
    """A browser gets words, whatever is wrong; who asks for JSON, or below /v1, gets a problem."""
    browser = {"Accept": "text/html"}
    for asked, status in (
        (client.get("/nowhere", headers=browser), 404),
        (client.get("/placements/x", params={"layer": "first"}, headers=browser), 422),
        (client.get("/", headers=browser | {"Host": "elsewhere.example"}), 421),
        (client.post("/login", headers=browser | {"Origin": "https://elsewhere.example"}), 403),
        (client.post("/login", content=bytes(5 << 20), headers=browser), 413),
    ):
        assert asked.status_code == status and "<h1>" in asked.text and 'role="alert"' in asked.text
    problem_of(client.get("/nowhere"), 404)
    problem_of(client.get("/v1/nowhere", headers={"Accept": "text/html"}), 404)


def test_errors_are_in_words_of_the_request(client: httpx.Client, trace_id: str) -> None:
    """No option of a command line, and no path of the server."""
    body = {"traces": [trace_id], "cluster": {"num_nodes": 3, "gpus_per_node": 1}}
    answer = client.post("/v1/placements", json=body)
    problem = problem_of(answer, 422)
    assert "redundant_experts" in problem["mend"]
    assert "--" not in answer.text


def test_every_option_of_a_search_has_a_key() -> None:
    """What the command line calls by an option, a body calls by a key of its own."""
    options = re.findall(r"--([a-z][a-z-]+)", inspect.getsource(option_groups))
    unknown = [name for name in options if not OPTION.fullmatch(f"--{name}")]
    assert in_rest_words("use --redundant-experts 16 or --max-moves-per-layer; --nodes, --job-time-limit") == (
        "use redundant_experts 16 or max_moves_per_layer; num_nodes, --job-time-limit"
    )
    assert len(unknown) <= 12, unknown
