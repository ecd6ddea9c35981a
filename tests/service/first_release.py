"""What a service of the first release, of 23 November 2026, left behind."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import alembic.command
from alembic.config import Config
from placement_api.store.database import MIGRATIONS, Database
from sqlalchemy import create_engine, text

from placement.traces.storage.content_digest import content_digest

LANDED = "0003"  # of the tables of 23 November: 52649e5
TOKEN = "plc_" + "t" * 40
JOB = "c" * 32
BODY: dict[str, Any] = {
    "cluster": {"num_nodes": 2, "gpus_per_node": 2},
    "options": {"solver": "linear", "bound": "none"},
    "report": False,
}


def stored(url: str, trace: Path) -> str:
    """A database as the first release left it: a token, a trace, and a job that was running. The id of the trace."""
    database = Database(url)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with database.engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, LANDED)
    database.close()
    name = content_digest((path.name, path) for path in trace.iterdir())
    engine = create_engine(url)
    request = BODY | {"traces": [name], "holdout": 0.2, "robust": None, "current": None, "group": None}
    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO tokens VALUES ('a1', 'old', :hash, :scopes, 1.0)"),
            {"hash": hashlib.sha256(TOKEN.encode()).hexdigest(), "scopes": json.dumps(["solve"])},
        )
        connection.execute(
            text(
                "INSERT INTO traces (id, kind, source, path, name, num_bytes, num_tokens, num_requests, num_layers,"
                " num_experts, top_k, created, used)"
                " VALUES (:id, 'trace', 'upload', :id, 'tiny', 1, 300, 12, 2, 8, 2, 1.0, :now)"
            ),
            {"id": name, "now": time.time()},
        )
        connection.execute(
            text(
                "INSERT INTO jobs (id, kind, state, request, digest, active_digest, created, started, attempts, stage,"
                " done, total, cancel, files, summary) VALUES (:job, 'solve', 'running', :request, 'd', 'd', 1.0, 2.0,"
                " 1, 'solve', 1, 2, false, '{}', '{}')"
            ),
            {"job": JOB, "request": json.dumps(request)},
        )
    engine.dispose()
    return name
