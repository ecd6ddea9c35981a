"""A data folder of the first release goes on with this one: nothing that it knows is lost, and its jobs end."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import alembic.command
import httpx
import pytest
from alembic.config import Config
from placement_api.service import open_store
from placement_api.settings import Settings
from placement_api.store.database import MIGRATIONS, Database
from placement_api.store.tables import Base
from sqlalchemy import create_engine, inspect, text
from tests_service import Server, answered, wait_until

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


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_the_first_release_is_upgraded(kind: str, request: pytest.FixtureRequest, tmp_path: Path, trace: Path) -> None:
    """Its token opens the door, its trace is solved, the job that ran ends, and what nobody owns any solver deletes."""
    url = "" if kind == "sqlite" else str(request.getfixturevalue("database_url"))
    data = tmp_path / "data"
    data.mkdir()
    settings = Settings(data=data, database_url=url)
    name = stored(settings.store_url, trace)
    shutil.copytree(trace, data / "traces" / name)
    server = Server(data=data, arguments=("--database-url", url) if url else ()).start()
    try:
        with server.client(TOKEN) as client:
            assert httpx.get(f"{server.url}/readyz", timeout=10).status_code == 200
            wait_until(lambda: client.get(f"/v1/jobs/{JOB}").json()["state"] == "done", seconds=120)
            assert answered(client, "/v1/placements", BODY | {"traces": [name], "holdout": 0.3}).status_code == 200
            assert client.delete(f"/v1/placements/{JOB}").status_code == 204
            assert client.delete(f"/v1/traces/{name}").status_code == 204
    finally:
        server.kill()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_an_upgraded_database_has_the_tables_of_a_new_one(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, trace: Path
) -> None:
    """Every table and column that the code names, with the same types, wherever it began."""
    url = "" if kind == "sqlite" else str(request.getfixturevalue("database_url"))
    settings = Settings(data=tmp_path, database_url=url)
    stored(settings.store_url, trace)
    upgraded = open_store(settings)
    found = inspect(upgraded.engine)
    for table in Base.metadata.sorted_tables:
        columns = {column["name"]: column["type"] for column in found.get_columns(table.name)}
        assert set(columns) == {column.name for column in table.columns}, table.name
    assert {index["name"] for index in found.get_indexes("tokens")} >= {"tokens_by_old_hash"}
    upgraded.close()
