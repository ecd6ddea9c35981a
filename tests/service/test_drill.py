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
from doc_commands import ADDRESS, documented
from first_release import JOB, TOKEN, stored
from placement_api.settings import Settings
from tests_service import Server, problem_of, tar_of, wait_until

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
        for seed in range(4):  # so that the page's versions 3 and 4 are there
            _placed(operator, server, boss, seed)
            shutil.copy(tmp_path / "same.json", tmp_path / "placement.json")
            said = operator.run("names.md", "placement names publish", boss)
        assert "version 4" in said
        alias = "deepseek-v3/decode@production"
        promote = f"placement names promote {alias}"
        operator.run("names.md", promote, boss, **{"production 4 --expect 3": "production 3"})
        operator.run("names.md", promote, boss)
        assert _version(server, boss, alias) == 4
        assert "pulled version 4" in operator.run("names.md", "placement pull", boss)
        operator.run("names.md", "placement names rollback", boss)
        assert _version(server, boss, alias) == 3
        assert "pulled version 3" in operator.run("names.md", "placement pull", boss)
        pulled = (tmp_path / "maps" / "current" / "placement.json").read_bytes()
        operator.run("service.md", "placement backup")
        operator.run("service.md", "placement restore")
    finally:
        server.close()

    restored = _restored(tmp_path / "restored-data")
    try:
        with restored.client(boss) as client:
            assert _version(restored, boss, alias) == 3
            assert client.get(f"/v1/names/{alias}/placement").content == pulled
            assert first in [row["id"] for row in client.get("/v1/placements").json()]
            folder = Path(f"/proc/{restored.pid}/root{restored.data}")
            _full_disk(client, folder, first, trace)
            _no_database(client, folder)
    finally:
        restored.close()


def _rotated(operator: Operator, server: Server) -> None:
    """A token is replaced: both are valid for a while, and the new one owns what the old one made."""
    before = operator.run("service.md", "placement token create nightly").strip()
    mine = _placed(operator, server, before, seed=9)
    after = operator.run("service.md", "placement token replace").strip().splitlines()[-1]
    with server.client(before) as one, server.client(after) as two:
        assert one.get(f"/v1/jobs/{mine}").json()["state"] == "done"
        assert two.delete(f"/v1/placements/{mine}").status_code == 204


def _placed(operator: Operator, server: Server, token: str, seed: int = 0) -> str:
    """The id of a placement that `placement submit` made, as the page has it."""
    operator.run("service.md", "placement submit", token, **{"-o same.json": f"--seed {seed} -o same.json"})
    with server.client(token) as client:
        return str(client.get("/v1/placements", params={"limit": 1}).json()[0]["id"])


def _version(server: Server, token: str, alias: str) -> int:
    with server.client(token) as client:
        return int(client.get(f"/v1/names/{alias}").json()["version"])


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
