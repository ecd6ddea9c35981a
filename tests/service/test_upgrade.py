"""A data folder of the first release goes on with this one: nothing that it knows is lost, and its jobs end."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import pytest
from first_release import BODY, JOB, TOKEN, stored
from placement_api.service import open_store
from placement_api.settings import Settings
from placement_api.store.tables import Base
from sqlalchemy import inspect
from tests_service import Server, answered, wait_until


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
