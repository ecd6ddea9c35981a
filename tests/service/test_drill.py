"""An operator's first days, by the commands of the docs alone: upgrade, first placement, rotation, names, backup,
restore, and a disk and a database that fail."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from doc_commands import ADDRESS, documented, restored_to_another
from first_release import JOB, TOKEN, stored
from placement_api.settings import Settings
from tests_service import Server, problem_of, tar_of, wait_until

ALIAS = "deepseek-v3/decode@production"
NAMESPACES = (("unshare", "--mount"), ("unshare", "--user", "--map-root-user", "--mount"))
SMALL = 'mount -t tmpfs -o size=16m tmpfs "$0" && cp -r "$0-kept/." "$0" && exec "$@"'  # a disk with what was restored


class Operator:
    """Runs commands of pages as they are written, in a folder, and with what changes between set-ups put in."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, run_cli: Any) -> None:
        self.folder, self.patch, self.run_cli = folder, patch, run_cli
        self.address = ADDRESS
        patch.chdir(folder)

    def at(self, server: Server) -> None:
        self.address = f"127.0.0.1:{server.port}"
        self.patch.setenv("PLACEMENT_URL", server.url)

    def run(self, page: str, start: str, token: str = "", **changes: str) -> str:
        """What the command of a page printed that begins so."""
        text = documented(page, start).replace(ADDRESS, self.address).replace("/maps", f"{self.folder}/maps")
        for old, new in changes.items():
            text = text.replace(old, new)
        self.patch.setenv("PLACEMENT_TOKEN", token)
        words = shlex.split(text)
        assert words[0] == "placement"
        done = self.run_cli(*words[1:])
        assert done.code == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        return str(done.stdout)


def test_the_first_days_of_an_operator(
    tmp_path: Path, trace: Path, run_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step takes its command from docs/service.md or docs/names.md, and leaves what the page says."""
    operator = Operator(tmp_path, monkeypatch, run_cli)
    shutil.copytree(trace, tmp_path / "examples" / "traces")
    data = tmp_path / "demo-data"
    data.mkdir()
    name = stored(Settings(data=data).store_url, trace)
    shutil.copytree(trace, data / "traces" / name)
    operator.run("service.md", "placement backup")  # before the upgrade: the page says so
    (tmp_path / "backup.tar").rename(tmp_path / "before.tar")

    server = Server(data=data).start()
    try:
        operator.at(server)
        with server.client(TOKEN) as old:  # the upgrade: the first release's token, trace and job go on
            wait_until(lambda: old.get(f"/v1/jobs/{JOB}").json()["state"] == "done", seconds=120)
            assert [row["id"] for row in old.get("/v1/traces").json()] == [name]
        first = _placed(operator, server, TOKEN)
        _rotated(operator, server)
        made = run_cli("token", "create", "boss", "--scope", "admin", "--data", data)
        boss = made.stdout.strip()
        pulled = _moved_and_back(operator, server, boss, 4)  # the versions that the page names
        operator.run("service.md", "placement backup")
        operator.run("service.md", "placement restore")
    finally:
        server.close()

    restored = _restored(tmp_path / "restored-data")
    try:
        with restored.client(boss) as client:
            _as_before(client, 3, pulled, first)
            folder = Path(f"/proc/{restored.pid}/root{restored.data}")
            _full_disk(client, folder, first, trace)
            _no_database(client, folder)
    finally:
        restored.close()


def test_the_same_days_with_postgresql(
    tmp_path: Path,
    trace: Path,
    run_cli: Any,
    monkeypatch: pytest.MonkeyPatch,
    postgres_server: Any,
    database_url: str,
) -> None:
    """With the database's URL in the environment the commands are the same. PostgreSQL's own tools back the rows up
    while the service runs; the database goes and comes back."""
    monkeypatch.setenv("PLACEMENT_DATABASE_URL", database_url)
    operator = Operator(tmp_path, monkeypatch, run_cli)
    shutil.copytree(trace, tmp_path / "examples" / "traces")
    data = tmp_path / "placement-data"
    boss = run_cli("token", "create", "boss", "--scope", "admin", "--data", data).stdout.strip()
    server = Server(data=data).start()
    try:
        operator.at(server)
        first = _placed(operator, server, boss)
        _rotated(operator, server)
        pulled = _moved_and_back(operator, server, boss, 2)
        new_url = restored_to_another(postgres_server, database_url, tmp_path)
    finally:
        server.close()

    monkeypatch.setenv("PLACEMENT_DATABASE_URL", new_url)
    restored = Server(data=tmp_path / "restored-data").start()
    try:
        with restored.client(boss) as client:
            _as_before(client, 1, pulled, first)
            postgres_server.stop()
            try:
                wait_until(lambda: client.get("/readyz").status_code == 503)
                assert client.get("/healthz").status_code == 200
                problem_of(client.get("/v1/placements"), 503)
            finally:
                postgres_server.ensure_postgres_running()
            wait_until(lambda: client.get("/readyz").status_code == 200)
            _as_before(client, 1, pulled, first)
    finally:
        restored.close()


def _moved_and_back(operator: Operator, server: Server, token: str, last: int) -> bytes:
    """Versions up to the last are published, the alias goes to the last and is rolled back; each is pulled. The file
    of the version before the last."""
    for seed in range(last):
        _placed(operator, server, token, seed)
        shutil.copy(operator.folder / "same.json", operator.folder / "placement.json")
        said = operator.run("names.md", "placement names publish", token)
    assert f"version {last}" in said
    promote, numbers = f"placement names promote {ALIAS}", "production 4 --expect 3"
    operator.run("names.md", promote, token, **{numbers: f"production {last - 1}"})
    operator.run("names.md", promote, token, **{numbers: f"production {last} --expect {last - 1}"})
    assert _version(server, token) == last
    assert f"pulled version {last}" in operator.run("names.md", "placement pull", token)
    operator.run("names.md", "placement names rollback", token)
    assert _version(server, token) == last - 1
    assert f"pulled version {last - 1}" in operator.run("names.md", "placement pull", token)
    return (operator.folder / "maps" / "current" / "placement.json").read_bytes()


def _as_before(client: httpx.Client, version: int, file: bytes, placement: str) -> None:
    """The alias has its version, whose file is as it was, and the placement is there."""
    assert client.get(f"/v1/names/{ALIAS}").json()["version"] == version
    assert client.get(f"/v1/names/{ALIAS}/placement").content == file
    assert placement in [row["id"] for row in client.get("/v1/placements").json()]


def _rotated(operator: Operator, server: Server) -> None:
    """A token is replaced: both are valid for a while, and the new one owns what the old one made."""
    before = operator.run("service.md", "placement token create nightly", **{"demo-data": server.data.name}).strip()
    mine = _placed(operator, server, before, seed=9)
    replaced = operator.run("service.md", "placement token replace", **{"demo-data": server.data.name})
    after = replaced.strip().splitlines()[-1]
    with server.client(before) as one, server.client(after) as two:
        assert one.get(f"/v1/jobs/{mine}").json()["state"] == "done"
        assert two.delete(f"/v1/placements/{mine}").status_code == 204


def _placed(operator: Operator, server: Server, token: str, seed: int = 0) -> str:
    """The id of a placement that `placement submit` made, as the page has it."""
    operator.run("service.md", "placement submit", token, **{"-o same.json": f"--seed {seed} -o same.json"})
    with server.client(token) as client:
        return str(client.get("/v1/placements", params={"limit": 1}).json()[0]["id"])


def _version(server: Server, token: str) -> int:
    with server.client(token) as client:
        return int(client.get(f"/v1/names/{ALIAS}").json()["version"])


def _restored(data: Path) -> Server:
    """A service on what was restored, on a disk of 16 MiB that only this service sees; on the folder itself where no
    disk can be mounted."""
    kept = data.with_name(f"{data.name}-kept")
    data.rename(kept)
    data.mkdir()
    for namespace in NAMESPACES:
        prefix = (*namespace, "sh", "-c", SMALL, str(data))
        if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
            return Server(data=data, prefix=prefix).start()
    pytest.skip("no small file system can be mounted here: unshare is not allowed; all steps before passed")


def _full_disk(client: httpx.Client, folder: Path, placement: str, trace: Path) -> None:
    """507 and what is there can be read; all works again when there is space."""
    with (folder / "filler").open("ab", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(bytes(4096))
    upload = {"file": ("t.tar", bytes(3_000_000))}
    assert "full" in problem_of(client.post("/v1/traces", files=upload), 507)["detail"]
    assert client.get(f"/v1/placements/{placement}").status_code == 200
    wait_until(lambda: client.get("/readyz").status_code == 503)
    assert client.get("/healthz").status_code == 200
    (folder / "filler").unlink()
    wait_until(lambda: client.get("/readyz").status_code == 200)
    assert client.post("/v1/traces", files={"file": ("t.tgz", tar_of(trace))}).status_code == 201


def _no_database(client: httpx.Client, folder: Path) -> None:
    """`/readyz` says 503 and `/healthz` 200; ready again when the database is back."""
    rows = [path for path in folder.glob("store.sqlite*")]
    for path in rows:
        path.rename(path.with_name(f"away-{path.name}"))
    wait_until(lambda: client.get("/readyz").status_code == 503)
    assert client.get("/healthz").status_code == 200
    for path in rows:
        path.unlink(missing_ok=True)
        path.with_name(f"away-{path.name}").rename(path)
    wait_until(lambda: client.get("/readyz").status_code == 200)
