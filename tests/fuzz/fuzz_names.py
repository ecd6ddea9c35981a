"""Target: the registry of names, over a database of its own, as the service takes its requests."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fuzz_base import SHARED_MEMORY, Seeds, Target
from fuzz_maps import map_bytes
from fuzz_service import ask

METHODS = ("POST", "PUT", "GET", "DELETE")


def registry() -> Target:
    """A method, a path below /v1/names and a body. No answer is a 5xx, and a refusal says how to mend the request."""
    made: list[Any] = []

    def run(data: bytes) -> None:
        try:
            given = json.loads(data)
        except (ValueError, RecursionError):
            return
        if not isinstance(given, dict) or not isinstance(given.get("path"), str):
            return
        if not made:
            made.append(_application())
        method = given.get("method") if given.get("method") in METHODS else "POST"
        body = json.dumps(given.get("body")).encode() if method in ("POST", "PUT") else b""
        path = "/v1/names/" + given["path"].encode("utf-8", "replace").decode()
        status, content = asyncio.run(ask(made[0], path, body, method=str(method)))
        if status >= 500 or (status >= 400 and not json.loads(content)["mend"]):
            raise AssertionError(f"answered {status}: {content[:200]!r}")

    def seeds() -> Seeds:
        steps = {
            "publish": {"path": "m/decode", "body": {"document": json.loads(map_bytes()), "note": "first"}},
            "unknown": {"path": "m/decode", "body": {"placement": "5f0a"}},
            "promote": {"method": "PUT", "path": "m/decode@production", "body": {"version": 1, "expect": None}},
            "rollback": {"path": "m/decode@production/rollback", "body": {"expect": 1, "note": "hot"}},
            "look": {"method": "GET", "path": "m/decode@production"},
            "file": {"method": "GET", "path": "m/decode@1/placement"},
            "remove": {"method": "DELETE", "path": "m/decode@production"},
        }
        return {name: json.dumps(step).encode() for name, step in steps.items()}

    return Target(run=run, seeds=seeds, kind="json")


def _application() -> Any:
    from fastapi import FastAPI
    from placement_api import problems
    from placement_api.problems import Problem
    from placement_api.routes import names
    from placement_api.settings import Limits
    from placement_api.store.blobs import Blobs
    from placement_api.store.database import Database
    from placement_api.store.files import LocalFiles
    from placement_api.store.names import Names
    from placement_api.store.recent import Recent

    base = Path(tempfile.mkdtemp(prefix="fuzz-", dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None))
    database = Database(f"sqlite:///{base / 'names.sqlite'}")
    database.upgrade()
    blobs = Blobs(files=LocalFiles(root=base))
    app = FastAPI()
    problems.install(app, Problem.response)
    app.state.service = SimpleNamespace(
        database=database,
        names=Names(database=database),
        blobs=blobs,
        recent=Recent(database=database, blobs=blobs),
        tokens=SimpleNamespace(spend=lambda *_: None),
        settings=SimpleNamespace(limits=Limits()),
    )
    app.include_router(names.router)
    return app
