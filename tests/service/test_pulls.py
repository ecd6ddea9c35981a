"""`placement pull`, as an init container runs it: in a process of its own, on a folder that may be there."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from named import different, promoted, published
from tests_service import Server, tar_of, wait_until

# a process that can write no file of more than 2,000 bytes: what a full disk does to it, at any place
FULL_DISK = (
    "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); "
)


def command(url: str, folder: Path, where: str, engine: str, *more: str, prefix: str = "") -> list[str]:
    script = f"{prefix}from placement.cli import main; main()"
    return [sys.executable, "-c", script, "pull", where, "--for", engine, "-o", str(folder), "--server", url, *more]


def pulled(
    url: str, folder: Path, *more: str, where: str = "pod@production", engine: str = "sglang", prefix: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(url, folder, where, engine, *more, prefix=prefix),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _two_versions(client: httpx.Client, trace: Path, **changes: Any) -> list[str]:
    """Placements that are versions 1 and 2 of `pod`, whose alias `production` has version 1."""
    answer = client.post("/v1/traces", files={"file": ("t.tar.gz", tar_of(trace))})
    ids = different(client, answer.json()["id"], 2, **changes)
    published(client, "pod", ids)
    promoted(client, "pod@production", 1)
    return ids


def test_at_every_start(make_server: Callable[..., Server], trace: Path, tmp_path: Path) -> None:
    """The pod that starts gets what the alias has; again, nothing is written; where the service is away the copy is
    used, and a pod without one fails; after a move the next pod gets the new version, and the files of the old one
    stay beside."""
    server = make_server(tmp_path / "data")
    with server.client() as client:
        ids = _two_versions(client, trace, group={})
        first = pulled(server.url, tmp_path / "a")
        assert first.returncode == 0, first.stderr
        assert first.stdout.startswith("pulled version 1 of pod for sglang")
        assert sorted(path.name for path in (tmp_path / "a/current").iterdir()) == [
            *("expert_map.json", "flags.txt", "grouping.json", "placement.json", "pulled.json")
        ]
        whole = client.get(f"/v1/placements/{ids[0]}").content
        assert (tmp_path / "a/current/placement.json").read_bytes() == whole
        assert str(tmp_path / "a/current/expert_map.json") in (tmp_path / "a/current/flags.txt").read_text()
        engine = client.get(f"/v1/placements/{ids[0]}", params={"format": "sglang"}).content
        assert (tmp_path / "a/current/expert_map.json").read_bytes() == engine
        before = (tmp_path / "a/current/pulled.json").stat().st_mtime_ns
        assert pulled(server.url, tmp_path / "a").stdout.startswith("kept version 1")
        assert (tmp_path / "a/current/pulled.json").stat().st_mtime_ns == before
        promoted(client, "pod@production", 2)
    server.kill()
    away = pulled(server.url, tmp_path / "a")
    assert away.returncode == 0
    assert "does not answer" in away.stderr and "version 1, which is in" in away.stderr
    assert pulled(server.url, tmp_path / "a", "--fresh").returncode == 2
    cold = pulled(server.url, tmp_path / "b")
    assert cold.returncode == 2 and "does not answer" in cold.stderr and not (tmp_path / "b/current").exists()
    server.start()
    assert pulled(server.url, tmp_path / "b").stdout.startswith("pulled version 2")
    assert pulled(server.url, tmp_path / "a").stdout.startswith("pulled version 2")
    assert len(list((tmp_path / "a").glob("v1-*"))) == 1


def test_a_broken_store_a_full_disk_and_a_damaged_copy(
    make_server: Callable[..., Server], trace: Path, tmp_path: Path
) -> None:
    """A file of another digest is never used: the copy is, or the pod fails. A full disk leaves the copy as it was.
    A copy that was changed is no copy."""
    server = make_server(tmp_path / "data")
    with server.client() as client:
        _two_versions(client, trace)
        assert pulled(server.url, tmp_path / "a").returncode == 0
        promoted(client, "pod@production", 2)
        digest = client.get("/v1/names/pod@2").json()["sha256"]
    full = pulled(server.url, tmp_path / "a", prefix=FULL_DISK)
    assert full.returncode == 0, full.stderr
    assert "File too large" in full.stderr and "version 1" in full.stderr
    assert pulled(server.url, tmp_path / "c", prefix=FULL_DISK).returncode == 2
    assert not list((tmp_path / "c").glob(".*"))
    blob = tmp_path / "data/blobs" / digest[:2] / digest
    blob.write_bytes(blob.read_bytes().replace(b"expert", b"exbert", 1))
    server.kill(signal.SIGTERM)
    server.start()  # which had the file in memory
    broken = pulled(server.url, tmp_path / "a")
    assert broken.returncode == 0 and "has the digest" in broken.stderr and "version 1" in broken.stderr
    cold = pulled(server.url, tmp_path / "b")
    assert cold.returncode == 2 and "has the digest" in cold.stderr and not (tmp_path / "b/current").exists()
    copy = tmp_path / "a/current/expert_map.json"
    copy.write_bytes(copy.read_bytes()[:-5])
    assert pulled(server.url, tmp_path / "a").returncode == 2


def test_what_is_refused(client: httpx.Client, server: Server, three: list[str], tmp_path: Path) -> None:
    """An alias that is not there, an engine that the map is not for: the pod fails with one line, copy or not."""
    published(client, "refuse", three[:1])
    promoted(client, "refuse@production", 1)
    assert pulled(server.url, tmp_path / "a", where="refuse@production").returncode == 0
    for where, engine, what in (
        ("refuse@staging", "sglang", "no alias 'staging'"),
        ("nobody@production", "sglang", "no name 'nobody'"),
        ("refuse@production", "vllm", "solved for sglang, not for vllm"),
        ("refuse@production", "what", "unknown"),
        ("refuse", "sglang", "names no version"),
    ):
        done = pulled(server.url, tmp_path / "a", where=where, engine=engine)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert what in done.stderr
    assert json.loads((tmp_path / "a/current/pulled.json").read_text())["engine"] == "sglang"


def test_following(client: httpx.Client, server: Server, three: list[str], tmp_path: Path) -> None:
    """A sidecar pulls again whenever the alias moves, back too."""
    published(client, "follow", three)
    promoted(client, "follow@production", 1)
    process = subprocess.Popen(
        command(server.url, tmp_path / "a", "follow@production", "sglang", "--follow"),
        stdout=subprocess.PIPE,
        text=True,
    )
    told = tmp_path / "a/current/pulled.json"
    try:
        for version in (1, 2, 3):
            promoted(client, "follow@production", version)
            wait_until(lambda v=version: told.exists() and json.loads(told.read_text())["version"] == v)
        client.post("/v1/names/follow@production/rollback", json={})
        wait_until(lambda: json.loads(told.read_text())["version"] == 2)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
