"""What was acknowledged is on disk: the order of system calls, seen from outside of the service."""

from __future__ import annotations

import hashlib
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from tests_service import Server, tar_of

CALLS = "fsync,fdatasync,rename,renameat,renameat2,pwrite64,sendto"
FINISHED = re.compile(r"^(\d+) +(\w+)\((.*)\) += \d", re.DOTALL)
BEGUN = re.compile(r"^(\d+) +(\w+)\((.*) <unfinished \.\.\.>$", re.DOTALL)
RESUMED = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>(.*)\) += \d", re.DOTALL)

strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: nobody watches the calls")


def read_calls(log: Path) -> list[tuple[str, str]]:
    """Name and arguments of each call: syncs and renames where they ended, writes and sends where they began."""
    found: list[tuple[str, str]] = []
    begun: dict[tuple[str, str], str] = {}
    for line in log.read_text(errors="replace").splitlines():
        if match := BEGUN.match(line):
            pid, name, arguments = match.groups()
            begun[pid, name] = arguments
            if name in ("pwrite64", "sendto"):
                found.append((name, arguments))
        elif match := RESUMED.match(line):
            pid, name, _ = match.groups()
            if name not in ("pwrite64", "sendto"):
                found.append((name, begun.pop((pid, name))))
        elif match := FINISHED.match(line):
            found.append((match[2], match[3]))
    return found


def first(calls: list[tuple[str, str]], start: int, name: str, *said: str) -> int:
    """Where, from `start` on, the first call of such a name says all of that."""
    for number in range(start, len(calls)):
        if name in calls[number][0] and all(one in calls[number][1] for one in said):
            return number
    raise AssertionError(f"no {name} of {said} after call {start}")


@strace
def test_files_are_on_disk_before_rows_name_them_and_rows_before_the_answer(tmp_path: Path, trace: Path) -> None:
    """Of a trace and of a placement, on SQLite: file synced, renamed, folder synced; row written, synced; answered."""
    log = tmp_path / "calls"
    watch = ("strace", "-D", "-f", "--seccomp-bpf", "-y", "-s", "6000", "-e", f"trace={CALLS}", "-o", str(log))
    server = Server(data=tmp_path / "data", prefix=watch)
    try:
        server.start()
        with server.client() as client:
            uploaded = client.post("/v1/traces", files={"file": ("t.tgz", tar_of(trace))}).json()["id"]
            options = {"solver": "linear", "bound": "none"}
            body: dict[str, Any] = {"traces": [uploaded], "cluster": {"num_nodes": 2}, "options": options}
            answer = client.post("/v1/placements?wait=60", json=body | {"report": False})
            assert answer.status_code == 200, answer.text
    finally:
        server.kill(signal.SIGTERM)
    calls = read_calls(log)
    digest = hashlib.sha256(answer.content).hexdigest()

    shard = first(calls, 0, "fsync", "/traces/.incoming-", "shard-00001.safetensors>")
    renamed = first(calls, shard, "rename", "/traces/.incoming-", f"/traces/{uploaded}")
    folder = first(calls, renamed, "fsync", "/traces>")
    row = first(calls, 0, "pwrite64", "/store.sqlite-wal>", uploaded)
    assert folder < row
    synced = first(calls, row, "sync", "/store.sqlite-wal>")
    assert synced < first(calls, 0, "sendto", "201 Created")

    part = first(calls, 0, "fsync", f"/{digest[:2]}/.{digest}.")
    renamed = first(calls, part, "rename", f"/.{digest}.", f"/{digest[:2]}/{digest}")
    folder = first(calls, renamed, "fsync", f"/blobs/{digest[:2]}>")
    assert first(calls, 0, "fsync", "/data/blobs>") < renamed
    assert folder < first(calls, 0, "pwrite64", ".sqlite", digest)
    row = first(calls, folder, "pwrite64", "/store.sqlite-wal>", digest)
    synced = first(calls, row, "sync", "/store.sqlite-wal>")
    assert synced < first(calls, 0, "sendto", "content-location: /v1/placements/")
