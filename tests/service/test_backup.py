"""A backup holds what a service knows: restored to another folder, all is there, and a broken one restores nothing."""

from __future__ import annotations

import io
import shutil
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from doc_commands import restored_to_another
from first_release import JOB, TOKEN, stored
from placement_api.service import open_store
from placement_api.settings import Settings
from placement_api.store.blobs import Blobs
from placement_api.store.opening import open_files
from placement_api.store.tables import DONE, RUNNING, JobRow
from tests_service import Server, answered, tar_of, wait_until

BODY: dict[str, Any] = {"cluster": {"num_nodes": 2, "gpus_per_node": 2}, "options": {"solver": "linear"}}
FOREVER = {"solver": "anneal", "bound": "none", "work_limit": 50_000_000_000}


@pytest.fixture(scope="module")
def backup(tmp_path_factory: pytest.TempPathFactory, trace: Path, run_cli: Any) -> tuple[Path, dict[str, bytes]]:
    """A backup of a service that runs, with a job under way; and what it answered."""
    folder = tmp_path_factory.mktemp("backup")
    data = folder / "data"
    token = run_cli("token", "create", "ci", "--data", data).stdout.strip()
    server = Server(data=data).start()
    try:
        with server.client(token) as client:
            name = client.post("/v1/traces", files={"file": ("t.tgz", tar_of(trace))}).json()["id"]
            made = answered(client, "/v1/placements", BODY | {"traces": [name]})
            where = made.headers["content-location"]
            told = {path: client.get(path).content for path in (where, f"{where}/report", f"/v1/traces/{name}/info")}
            job = client.post("/v1/placements", json=BODY | {"traces": [name], "options": FOREVER}).json()["id"]
            wait_until(lambda: client.get(f"/v1/jobs/{job}").json()["state"] == "running")
            done = run_cli("backup", "-o", folder / "all.tar", "--data", data)
            assert done.code == 0, done.stderr
            assert "3 files of results, 1 traces" in done.stdout
    finally:
        server.kill()
    return folder / "all.tar", told | {"token": token.encode(), "job": job.encode()}


def test_a_backup_is_restored_to_another_folder(
    backup: tuple[Path, dict[str, bytes]], tmp_path: Path, run_cli: Any
) -> None:
    """Tokens, placements, reports and traces, byte for byte; the job that ran is begun again and can be cancelled."""
    archive, told = backup
    restored = run_cli("restore", archive, "--data", tmp_path / "elsewhere")
    assert restored.code == 0, restored.stderr
    server = Server(data=tmp_path / "elsewhere").start()
    try:
        with server.client(told["token"].decode()) as client:
            for path in (one for one in told if one.startswith("/")):
                assert client.get(path).content == told[path]
            job = told["job"].decode()
            wait_until(lambda: client.get(f"/v1/jobs/{job}").json()["progress"]["stage"] == "solve")
            client.post(f"/v1/jobs/{job}/cancel")
            wait_until(lambda: client.get(f"/v1/jobs/{job}").json()["state"] == "cancelled")
    finally:
        server.kill()


def test_a_database_of_postgresql_is_restored_to_another(
    postgres_server: Any, database_url: str, tmp_path: Path, trace: Path
) -> None:
    """By the commands of docs/service.md, while nothing runs: the token opens the door of the new service, a result is
    read, and the job that was running is begun again and done. The old database is as it was."""
    data = tmp_path / "placement-data"
    data.mkdir()
    settings = Settings(data=data, database_url=database_url)
    name = stored(settings.store_url, trace)
    shutil.copytree(trace, data / "traces" / name)
    database = open_store(settings)
    blobs = Blobs(files=open_files(settings))
    with database.session() as session:
        done = JobRow(id="d" * 32, kind="evaluate", state=DONE, request={"traces": [name]}, digest="e", caller="")
        done.created = done.started = done.finished = time.time()
        done.files = {"evaluation": blobs.put(b'{"kept": true}')}
        session.add(done)
    database.close()
    new_url = restored_to_another(postgres_server, database_url, tmp_path)
    server = Server(data=tmp_path / "restored-data", arguments=("--database-url", new_url)).start()
    try:
        with server.client(TOKEN) as client:
            assert client.get(f"/v1/jobs/{'d' * 32}/evaluation").json() == {"kept": True}
            wait_until(lambda: client.get(f"/v1/jobs/{JOB}").json()["state"] == "done", seconds=120)
            assert client.get(f"/v1/placements/{JOB}").status_code == 200
    finally:
        server.close()
    before = open_store(settings)
    with before.reading() as session:
        assert session.get_one(JobRow, JOB).state == RUNNING
    before.close()


def repacked(archive: Path, target: Path, change: Any) -> Path:
    """The same tar, after `change` got each member and its content."""
    with tarfile.open(archive) as old, tarfile.open(target, "w") as new:
        for member in old:
            content = old.extractfile(member).read() if member.isfile() else None  # type: ignore[union-attr]
            member, content = change(member, content)
            if content is not None:
                member.size = len(content)
            new.addfile(member, None if content is None else io.BytesIO(content))
    return target


def flipped(member: tarfile.TarInfo, content: bytes | None) -> tuple[tarfile.TarInfo, bytes | None]:
    if content and member.name.startswith("blobs/"):
        content = bytes([content[0] ^ 1]) + content[1:]
    return member, content


def other_trace(member: tarfile.TarInfo, content: bytes | None) -> tuple[tarfile.TarInfo, bytes | None]:
    return member, (content or b"") + b" " if member.name.endswith("trace.json") else content


def outside(member: tarfile.TarInfo, content: bytes | None) -> tuple[tarfile.TarInfo, bytes | None]:
    if member.name.startswith("blobs/"):
        member.name = "../evil"
    return member, content


def link(member: tarfile.TarInfo, content: bytes | None) -> tuple[tarfile.TarInfo, bytes | None]:
    if member.name.startswith("blobs/"):
        member.type, member.linkname, content = tarfile.SYMTYPE, "/etc/passwd", None
    return member, content


def no_rows(member: tarfile.TarInfo, content: bytes | None) -> tuple[tarfile.TarInfo, bytes | None]:
    return member, b"x" * len(content or b"") if member.name == "store.sqlite" else content


@pytest.mark.parametrize("change", [flipped, other_trace, outside, link, no_rows])
def test_a_broken_backup_restores_nothing(
    change: Any, backup: tuple[Path, dict[str, bytes]], tmp_path: Path, run_cli: Any
) -> None:
    """A byte that changed, a path that leads elsewhere, rows that are none: one line, and no folder."""
    broken = repacked(backup[0], tmp_path / "broken.tar", change)
    refused = run_cli("restore", broken, "--data", tmp_path / "new")
    assert refused.code == 2
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "new").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["broken.tar"]


def test_what_is_cut_off_restores_nothing(backup: tuple[Path, dict[str, bytes]], tmp_path: Path, run_cli: Any) -> None:
    """At any place; nor is a folder with something in it restored over."""
    whole = backup[0].read_bytes()
    for size in (0, 100, 5_000, len(whole) // 2):
        (tmp_path / "cut.tar").write_bytes(whole[:size])
        assert run_cli("restore", tmp_path / "cut.tar", "--data", tmp_path / "new").code == 2
        assert not (tmp_path / "new").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("mine")
    assert run_cli("restore", backup[0], "--data", tmp_path / "full").code == 2
    assert (tmp_path / "full" / "a").read_text() == "mine"
    assert run_cli("backup", "-o", tmp_path / "b.tar", "--data", tmp_path / "nothing").code == 2
