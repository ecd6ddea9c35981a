"""The OpenAPI document, with what the framework does not know: who may ask, where, and what placements look like."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from placement.documents.placement import PlacementFile

REFERENCE = "#/components/schemas/{model}"
PLACEMENT = {"$ref": REFERENCE.format(model=PlacementFile.__name__)}
OPEN = ("/healthz", "/readyz")


def describe(app: FastAPI) -> None:
    """Have `app.openapi()` answer all of it."""
    framework = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _add_to(framework())
        known: dict[str, Any] = framework()
        return known

    app.openapi = openapi  # type: ignore[method-assign]


def _add_to(document: dict[str, Any]) -> None:
    document["servers"] = [{"url": "/", "description": "The service that answers this document"}]
    schema = PlacementFile.model_json_schema(ref_template=REFERENCE)
    schemas = document["components"]["schemas"]
    schemas |= {**schema.pop("$defs", {}), **schemas}
    schemas[PlacementFile.__name__] = schema
    document["components"]["securitySchemes"] = {
        "token": {
            "type": "http",
            "scheme": "bearer",
            "description": "Made by placement token create; not needed where the service has no token and listens to "
            "its own machine alone",
        }
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["security"] = [] if path in OPEN else [{"token": []}, {}]


def answers(
    *media_types: str, schema: dict[str, Any] | None = None, what: str = "Successful Response"
) -> dict[int | str, Any]:
    """The 200 of a route that answers what is stored: its media types, and the schema of its JSON."""
    content: dict[str, Any] = {}
    for one in media_types:
        text = {"type": "string"} | ({} if one.startswith("text/") else {"format": "binary"})
        content[one] = {"schema": (schema or {"type": "object"}) if one == "application/json" else text}
    return {200: {"description": what, "content": content}}
