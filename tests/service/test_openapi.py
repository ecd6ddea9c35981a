"""The OpenAPI document is true: whatever is sent, answers are documented and none is a fault of ours."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, settings

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

from tests_service import Server  # noqa: E402


@pytest.fixture(scope="session")
def api(server: Server) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@settings(max_examples=6, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_documented(case: Any) -> None:
    """No 5xx, no undocumented status or content type, bodies as the schema says."""
    case.call_and_validate(timeout=90)


def test_every_operation_is_described_and_bodies_have_examples(client: httpx.Client) -> None:
    """What /docs shows: a description for each operation, an example for each body of JSON."""
    document = client.get("/openapi.json").json()
    bodies = set()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation.get("description") or operation.get("summary"), (method, path)
            content = operation.get("requestBody", {}).get("content", {})
            if "application/json" in content:
                bodies.add(content["application/json"]["schema"]["$ref"].rpartition("/")[2])
    schemas = document["components"]["schemas"]
    bare = [
        name
        for name in bodies
        if not (schemas[name].get("examples") or any("examples" in one for one in schemas[name]["properties"].values()))
    ]
    assert not bare
