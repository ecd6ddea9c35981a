"""The OpenAPI document is true: whatever is sent, answers are documented and none is a fault of ours."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

from tests_service import Server  # noqa: E402


# its plugin of pytest does not run with pytest 9.2, so its operations are asked for directly
def test_every_answer_is_documented(server: Server) -> None:
    """Whatever fits the document or not: no 5xx, no undocumented status or content type, bodies as the schema says."""
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks as openapi

    # what fits the form may still be refused: an archive that is none, a trace that is not there
    checks = [
        not_a_server_error,
        openapi.status_code_conformance,
        openapi.content_type_conformance,
        openapi.response_schema_conformance,
    ]
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 20
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(
            max_examples=5, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
        )
        def answers(case: Any) -> None:
            case.call_and_validate(timeout=90, checks=checks)

        answers()


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
