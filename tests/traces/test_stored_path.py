"""Traces on shared storage: an S3 server of moto's on loopback, and fsspec's storage in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placement.errors import TraceError
from placement.traces.storage.stored_path import StoredPath, is_url
from placement.traces.trace import open_trace
from placement.workload.count import count

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket of an S3 server on loopback, which the environment names."""
    server = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    moto = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    try:
        host, port = moto.get_host_and_port()
        environment = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "none",
            "AWS_SECRET_ACCESS_KEY": "none",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().makedirs("bucket", exist_ok=True)  # the buckets of a process outlive servers
        yield "s3://bucket"
    finally:
        moto.stop()
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def memory() -> Iterator[str]:
    storage = fsspec.filesystem("memory")
    storage.store.clear()
    yield "memory://bucket"
    storage.store.clear()


def upload(folder: Path, url: str) -> None:
    storage, path = fsspec.core.url_to_fs(url)
    for file in sorted(folder.iterdir()):
        storage.pipe_file(f"{path}/{file.name}", file.read_bytes())


def test_a_solve_from_s3_is_that_from_disk(bucket: str, tmp_path: Path, write_trace: Any, run_cli: Any) -> None:
    """`placement solve s3://...` writes the same bytes; a wrong name is told in one line."""
    folder = write_trace(tmp_path / "t", tokens=400, requests=9, num_shards=3).folder
    upload(folder, f"{bucket}/a/trace")
    outs = [tmp_path / "disk.json", tmp_path / "s3.json"]
    for source, out in zip((folder, f"{bucket}/a/trace"), outs, strict=True):
        done = run_cli("solve", source, "--nodes", 2, "--gpus-per-node", 2, "-o", out)
        assert done.code == 0, done.stderr
    assert outs[0].read_bytes() == outs[1].read_bytes()
    wrong = run_cli("solve", f"{bucket}/b", "--nodes", 2, "-o", tmp_path / "c.json")
    assert (wrong.code, wrong.stderr.count("\n")) == (2, 1)
    assert "s3://bucket/b does not exist" in wrong.stderr


def test_counts_from_s3_are_those_from_disk(bucket: str, tmp_path: Path, write_trace: Any, run_cli: Any) -> None:
    """`placement traces count s3://...`, of two folders; counted again nothing is read that has not changed."""
    for name in "ab":
        folder = write_trace(
            tmp_path / "t" / name, tokens=200, seed=ord(name), request_ids=[f"{name}{q}" for q in range(6)]
        )
        upload(folder.folder, f"{bucket}/t/{name}")
    for source, out in ((tmp_path / "t", "disk"), (f"{bucket}/t", "s3"), (f"{bucket}/t", "s3")):
        done = run_cli("traces", "count", source, "-o", tmp_path / out)
        assert done.code == 0, done.stderr
    assert "counted before" in done.stdout
    for file in ("counts.json", "counts.safetensors"):
        assert (tmp_path / "disk" / file).read_bytes() == (tmp_path / "s3" / file).read_bytes()


@pytest.mark.parametrize("name", ["trace", "trace/trace.json", "", "tr*"])
def test_folders_are_found_as_on_disk(name: str, memory: str, tmp_path: Path, write_trace: Any) -> None:
    """The folder, its manifest, a folder of folders, a glob."""
    folder = write_trace(tmp_path / "t", tokens=120, num_shards=2).folder
    upload(folder, f"{memory}/trace")
    ours, theirs = count(open_trace(folder)), count(open_trace(f"{memory}/{name}".rstrip("/")))
    assert ours.digest() == theirs.digest()
    assert np.array_equal(ours.coact_LEE, theirs.coact_LEE)


def test_pieces_are_read_and_not_whole_files(
    memory: str, tmp_path: Path, write_trace: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows in the middle of a shard, whatever the size of the pieces that are fetched."""
    monkeypatch.setattr("placement.traces.storage.stored_path.PIECE_BYTES", 64)
    written = write_trace(tmp_path / "t", tokens=500, num_layers=3, weights=True)
    upload(written.folder, f"{memory}/t")
    (shard,) = open_trace(f"{memory}/t").shards
    assert shard.has_weights
    for layer in range(3):
        assert np.array_equal(shard.layer("expert_ids", layer, 123, 321), written.ids_LTK[layer, 123:321])
    assert np.array_equal(shard.column("request", 7, 300), written.request_T[7:300])


def cut(content: bytes) -> bytes:
    return content[:-20]


def huge_header(content: bytes) -> bytes:
    return (1 << 60).to_bytes(8, "little") + content[8:]


def other_offsets(content: bytes) -> bytes:
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["request"]["data_offsets"][1] -= 4
    text = json.dumps(header).encode().ljust(size)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


@pytest.mark.parametrize("change", [cut, huge_header, other_offsets, lambda _: b"", lambda _: b"x" * 100])
def test_broken_shards_are_refused(change: Any, memory: str, tmp_path: Path, write_trace: Any) -> None:
    """One line that names the file, before anything is counted."""
    written = write_trace(tmp_path / "t")
    written.shards[0].write_bytes(change(written.shards[0].read_bytes()))
    upload(written.folder, f"{memory}/t")
    with pytest.raises(TraceError, match=r"memory://.*shard-00000.safetensors is truncated or not a safetensors file"):
        open_trace(f"{memory}/t")


@pytest.mark.parametrize("url", ["nothing-known://x/y", "memory://nowhere", "s3://bucket/x"])
def test_storage_that_is_not_there_is_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TraceError of one line for what is unknown, missing or does not answer."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    if url.startswith("s3"):
        pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
    with pytest.raises(TraceError) as caught:
        open_trace(url)
    assert url in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_a_url() -> None:
    """Paths of this machine are never taken for one, drive letters and doubled slashes included."""
    assert is_url("s3://bucket/x") and is_url(StoredPath("s3://bucket"))
    assert not any(is_url(path) for path in ("a/b", "/a//b", "C://x", "s3:/x", Path("s3://x"), "://x"))
