"""Uploads: what is no trace is refused with a reason, and leaves nothing behind."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import socket
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from placement_api.archives import LARGEST_HEADER, unpack
from placement_api.problems import Problem
from placement_api.settings import Limits
from tests_service import Server, problem_of, tar_of

SMALL = Limits(unpacked_bytes=1 << 20, archive_members=50)


def tar_with(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def zip_with(*members: tuple[str, bytes], mode: int = 0) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, content)
    return buffer.getvalue()


def long_header() -> bytes:
    """A gzipped tar whose extended header is longer than its reader should hold in memory."""
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, LARGEST_HEADER + 1024
    return gzip.compress(info.tobuf() + bytes(LARGEST_HEADER + 1024) + bytes(1024))


BAD = {
    "escape": (tar_with((member("../trace.json"), b"{}")), 422, "no file of a trace"),
    "deep escape": (tar_with((member("a/../../trace.json"), b"{}")), 422, "no file of a trace"),
    "absolute": (tar_with((member("/tmp/trace.json"), b"{}")), 422, "no file of a trace"),
    "absolute folder": (tar_with((member("/tmp/x", tarfile.DIRTYPE), b"")), 422, "folder"),
    "symlink": (tar_with((member("trace.json", tarfile.SYMTYPE, "/etc/passwd"), b"")), 422, "no plain file"),
    "hard link": (tar_with((member("trace.json", tarfile.LNKTYPE, "/etc/passwd"), b"")), 422, "no plain file"),
    "device": (tar_with((member("trace.json", tarfile.CHRTYPE), b"")), 422, "no plain file"),
    "bomb": (tar_with((member("trace.json"), bytes(2 << 20)), mode="w:gz"), 413, "unpacks to more"),
    "long header": (long_header(), 422, "headers"),
    "many": (tar_with(*((member(f"d{n}/trace.json"), b"{}") for n in range(51))), 422, "more than 50 members"),
    "twice": (tar_with((member("trace.json"), b"{}"), (member("trace.json"), b"{}")), 422, "twice"),
    "pickle": (pickle.dumps({"a": 1}), 422, "cannot be unpacked"),
    "pickle inside": (tar_with((member("trace.pkl"), pickle.dumps({}))), 422, "no file of a trace"),
    "cut off": (tar_with((member("trace.json"), b"{}" * 4000))[:2000], 422, "cannot be unpacked"),
    "gzip cut off": (gzip.compress(np.random.default_rng(0).bytes(20_000))[:9_000], 422, "cannot be unpacked"),
    "zip escape": (zip_with(("../trace.json", b"{}")), 422, "no file of a trace"),
    "zip symlink": (zip_with(("trace.json", b"/etc/passwd"), mode=0o120777), 422, "no plain file"),
    "zip bomb": (zip_with(("trace.json", bytes(2 << 20))), 413, ""),
    "litter that escapes": (tar_with((member("../README.md"), b"")), 422, "no file of a trace"),
    "hidden escape": (zip_with((".a/../../.hidden", b"")), 422, "no file of a trace"),
    "absolute litter": (tar_with((member("/README.md"), b"")), 422, "no file of a trace"),
    "litter that is a link": (tar_with((member(".hidden", tarfile.SYMTYPE, "/etc/passwd"), b"")), 422, "no plain file"),
    "zip litter that is a link": (zip_with(("README", b"/etc/passwd"), mode=0o120777), 422, "no plain file"),
    "bomb of litter": (tar_with((member(".hidden"), bytes(2 << 20)), mode="w:gz"), 413, "unpacks to more"),
    "zip bomb of litter": (zip_with((".hidden", bytes(2 << 20))), 413, "unpacks to more"),
    "much litter": (tar_with(*((member(f".{n}"), b"") for n in range(51))), 422, "more than 50 members"),
    "much litter in a zip": (zip_with(*((f".{n}", b"") for n in range(51))), 422, "more than 50 members"),
    "unknown file": (tar_with((member("notes.txt"), b"")), 422, "no file of a trace"),
    "empty": (b"", 422, "cannot be unpacked"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_a_bad_archive_is_refused(tmp_path: Path, name: str) -> None:
    """Nothing is written outside of the folder, no link is made, no more than allowed comes out."""
    content, status, reason = BAD[name]
    archive, folder = tmp_path / "archive", tmp_path / "in" / "folder"
    archive.write_bytes(content)
    folder.mkdir(parents=True)
    with pytest.raises(Problem) as caught:
        unpack(archive, folder, SMALL)
    assert caught.value.status == status
    assert reason in caught.value.body.detail
    assert {path for path in tmp_path.rglob("*") if folder not in path.parents} == {*(archive, folder.parent, folder)}
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= SMALL.unpacked_bytes


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_a_good_archive_comes_out_whole(tmp_path: Path, trace: Path, kind: str) -> None:
    """Whatever packed it, with the folder's name before the files or without."""
    files = {f"run/{path.name}": path.read_bytes() for path in trace.iterdir()}
    mode = "w:gz" if kind == "tar.gz" else "w"
    content = (
        zip_with(*files.items())
        if kind == "zip"
        else tar_with(
            (member("./run", tarfile.DIRTYPE), b""), *((member(f"./{n}"), c) for n, c in files.items()), mode=mode
        )
    )
    archive, folder = tmp_path / "archive", tmp_path / "folder"
    archive.write_bytes(content)
    folder.mkdir()
    unpack(archive, folder, SMALL)
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == files


LITTER = ("README.md", "LICENSE", ".DS_Store", "Thumbs.db", "__MACOSX/._trace.json")


def with_litter(trace: Path, kind: str) -> bytes:
    files = {path.name: path.read_bytes() for path in trace.iterdir()} | dict.fromkeys(LITTER, b"litter")
    if kind == "zip":
        return zip_with(*files.items())
    return tar_with(*((member(f"./{name}"), content) for name, content in files.items()), mode=kind)


@pytest.mark.parametrize("kind", ["w", "w:gz", "zip"])
def test_litter_is_left_out_and_told(client: httpx.Client, trace: Path, trace_id: str, kind: str) -> None:
    """The same trace as without, with a note in the answer; a trace without litter has none."""
    answer = client.post("/v1/traces", files={"file": ("t", with_litter(trace, kind))})
    assert answer.status_code == 201, answer.text
    assert answer.json()["id"] == trace_id
    (note,) = answer.json()["notes"]
    assert note.startswith("left out 5 files") and all(name in note for name in LITTER)
    clean = client.post("/v1/traces", files={"file": ("t.tgz", tar_of(trace))}).json()
    assert clean["id"] == trace_id and clean["notes"] == []
    assert client.get(f"/v1/traces/{trace_id}").json()["notes"] == []


def test_the_page_tells_of_litter(client: httpx.Client, trace: Path, trace_id: str) -> None:
    """By the form, without script: the trace's page with the note; without litter the way to that page."""
    told = client.post("/traces", files={"file": ("t.tar", with_litter(trace, "w"))})
    assert told.status_code == 200
    assert "left out 5 files" in told.text and "README.md" in told.text and f"/traces/{trace_id}/solve" in told.text
    plain = client.post("/traces", files={"file": ("t.tgz", tar_of(trace))})
    assert (plain.status_code, plain.headers["location"]) == (303, f"/traces/{trace_id}")


def test_an_archive_of_litter_alone_is_no_trace(client: httpx.Client) -> None:
    told = problem_of(client.post("/v1/traces", files={"file": ("t.tar", tar_with((member("README.md"), b"")))}), 422)
    assert "is empty" in told["detail"]


def test_the_same_trace_has_one_id_and_can_be_listed_inspected_and_deleted(
    client: httpx.Client, server: Server, tmp_path: Path, write_trace: Any, run_cli: Any
) -> None:
    """As tar or zip; deleting it frees its place on disk."""
    written = write_trace(tmp_path / "own", seed=9)
    packed = zip_with(*((path.name, path.read_bytes()) for path in written.folder.iterdir()))
    first = client.post("/v1/traces", files={"file": ("a.tgz", tar_of(written.folder))}).json()
    second = client.post("/v1/traces", files={"file": ("b.zip", packed)}).json()
    assert first["id"] == second["id"]
    assert first["num_tokens"] == 60
    assert [row["id"] for row in client.get("/v1/traces").json()].count(first["id"]) == 1
    told = json.loads(run_cli("traces", "info", written.folder, "--json").stdout)
    assert client.get(f"/v1/traces/{first['id']}/info").json() == told
    assert (server.data / "traces" / first["id"]).is_dir()
    assert client.delete(f"/v1/traces/{first['id']}").status_code == 204
    assert not (server.data / "traces" / first["id"]).exists()
    problem_of(client.get(f"/v1/traces/{first['id']}"), 404)


def test_a_trace_may_be_registered_below_an_allowed_folder_only(
    client: httpx.Client, trace: Path, tmp_path: Path, write_trace: Any
) -> None:
    """By its true path: neither `..` nor a link leads out; a trace that changed later is not solved in silence."""
    assert client.post("/v1/traces/register", json={"path": str(trace)}).status_code == 201
    outside = write_trace(tmp_path / "outside").folder
    link = trace.parent / "link"
    link.symlink_to(outside)
    for path in (outside, f"{trace}/../../{outside.name}", link, "tiny"):
        assert "not below" in problem_of(client.post("/v1/traces/register", json={"path": str(path)}), 422)["detail"]
    linked = write_trace(trace.parent / "linked").folder
    (linked / "a" / "b").mkdir(parents=True)
    (linked / "a" / "b" / "away").symlink_to(outside)
    answer = client.post("/v1/traces/register", json={"path": str(linked)})
    assert "away is a link out" in problem_of(answer, 422)["detail"]
    own = write_trace(trace.parent / "changes").folder
    name = client.post("/v1/traces/register", json={"path": str(own)}).json()["id"]
    write_trace(own, seed=5, tokens=90)
    body = {"traces": [name], "cluster": {"num_nodes": 2}, "options": {"solver": "linear"}}
    refused = client.post("/v1/placements?wait=30", json=body)
    assert "has changed" in problem_of(refused, 409)["detail"]
    assert str(own) not in refused.text, "where it lies is nobody's business"


def test_files_of_counts_may_be_uploaded_but_never_objects(client: httpx.Client) -> None:
    """.npy with top_k beside it; pickled objects in one are refused by the reader."""
    buffer, objects = io.BytesIO(), io.BytesIO()
    np.save(buffer, np.array([[9, 1, 4, 4], [2, 8, 6, 2]]))
    np.save(objects, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    answer = client.post("/v1/traces", files={"file": ("c.npy", buffer.getvalue())}, data={"top_k": "1"})
    assert answer.status_code == 201, answer.text
    assert answer.json()["kind"] == "counts"
    problem_of(client.post("/v1/traces", files={"file": ("c.npy", buffer.getvalue())}), 422)
    problem_of(client.post("/v1/traces", files={"file": ("c.npy", objects.getvalue())}, data={"top_k": "1"}), 422)


def test_a_client_that_goes_away_amid_an_upload_leaves_nothing(client: httpx.Client, server: Server) -> None:
    """Half a body: no trace, no file left, and the server goes on."""
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.tar"\r\n\r\n'
    head = (
        f"POST /v1/traces HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Length: 9000000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(head.encode() + part + bytes(3_000_000))
    before = client.get("/v1/traces").json()
    assert client.get("/healthz").status_code == 200
    assert client.get("/v1/traces").json() == before
    assert list((server.data / "uploads").iterdir()) == []
    assert not list((server.data / "traces").glob(".incoming-*"))


def test_a_trace_beyond_the_limits_is_refused(
    make_server: Callable[..., Server], server: Server, client: httpx.Client, tmp_path: Path, write_trace: Any
) -> None:
    """Layers beyond what the service allows: 422, and nothing kept."""
    many = write_trace(tmp_path / "many", num_layers=1025, num_experts=2, top_k=1, tokens=2, requests=1).folder
    told = problem_of(client.post("/v1/traces", files={"file": ("a.tgz", tar_of(many))}), 422)
    assert "1025 layers" in told["detail"]
    assert not list((server.data / "traces").glob(".incoming-*"))
