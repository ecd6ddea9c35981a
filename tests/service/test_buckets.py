"""Traces and results in a bucket, and traces fetched from one, against an S3 server on loopback."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from placement_api.service import make_service
from placement_api.settings import Limits, Settings
from placement_api.store import bucket as bucket_module
from placement_api.store.bucket import BucketFiles
from placement_api.store.files import Files, LocalFiles
from placement_api.store.s3 import Buckets, Place
from tests_service import Server, answered, problem_of, tar_of

from placement.errors import InputError, OptionError

GOLDEN = Path(__file__).parents[1] / "golden" / "readers"


@pytest.fixture(params=["folder", "bucket"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    if request.param == "folder":
        return LocalFiles(root=tmp_path / "data")
    place = Place.parse(request.getfixturevalue("bucket")).below(tmp_path.name)
    return BucketFiles(place=place, buckets=Buckets(), cache=tmp_path / "cache", most_bytes=1 << 20)


def test_files_are_kept_alike_in_a_folder_and_in_a_bucket(files: Files, tmp_path: Path) -> None:
    """Written, listed, read here, whole folders too; removed with all that is below, and nothing beside it."""
    before = time.time() - 2
    files.write("blobs/0f/0f3c", b"content")
    files.write("blobs/0f/0f3c", b"content")
    for name in ("t1", "t12"):
        (tmp_path / "incoming" / "deep").mkdir(parents=True)
        (tmp_path / "incoming" / "trace.json").write_text(name)
        (tmp_path / "incoming" / "deep" / "x.npz").write_bytes(bytes(5))
        files.take(f"traces/{name}", tmp_path / "incoming")
        shutil.rmtree(tmp_path / "incoming", ignore_errors=True)
    assert files.local("blobs/0f/0f3c").read_bytes() == b"content"
    assert (files.local("traces/t1") / "trace.json").read_text() == "t1"
    assert files.local("traces/t1/deep/x.npz").read_bytes() == bytes(5)
    assert files.local("traces/t1/deep/x.npz").name == "x.npz"
    listed = {entry.key: entry for entry in files.list("traces/")}
    assert set(listed) == {f"traces/{name}/{file}" for name in ("t1", "t12") for file in ("trace.json", "deep/x.npz")}
    assert listed["traces/t1/deep/x.npz"].num_bytes == 5
    assert all(before <= entry.modified <= time.time() + 2 for entry in listed.values())
    files.remove("traces/t1")
    files.remove("traces/t1")
    assert {entry.key for entry in files.list("traces/")} == {"traces/t12/trace.json", "traces/t12/deep/x.npz"}
    assert (files.local("traces/t12") / "trace.json").exists()
    files.remove("blobs/0f/0f3c")
    assert not list(files.list("blobs/"))


def test_the_cache_is_bounded_and_keeps_what_is_in_use(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest unused goes first; what jobs read, and what was asked for just now, stays."""
    monkeypatch.setattr(bucket_module, "YOUNG_S", 5.0)
    place = Place.parse(bucket).below(tmp_path.name)
    files = BucketFiles(
        place=place, buckets=Buckets(), cache=tmp_path / "cache", most_bytes=3000, pinned=lambda: {"traces/0"}
    )
    for number in range(5):
        files.write(f"traces/{number}/x", bytes(1000))
    (tmp_path / "cache" / ".part-dead").mkdir(parents=True)
    (tmp_path / "cache" / ".part-dead" / "x").write_bytes(bytes(1000))
    os.utime(tmp_path / "cache" / ".part-dead", (0, 0))
    for number in range(4):
        path = files.local(f"traces/{number}")
        os.utime(path.parent, (time.time() - 100 + number,) * 2)
    assert sorted(path.name for path in files.cache.iterdir()) == ["traces~0", "traces~2", "traces~3"]
    files.local("traces/2")  # used again
    files.local("traces/4")
    assert sorted(path.name for path in files.cache.iterdir()) == ["traces~0", "traces~2", "traces~4"]
    with pytest.raises(InputError, match="not in the bucket any more"):
        files.local("traces/9")
    assert not list(files.cache.glob(".part-*"))


BAD = (
    *("http://127.0.0.1/x", "https://s3.example/x", "file:///etc/passwd", "/etc/passwd", "memory://x", "s3:///x", "S3://traces/ok"),
    *("s3://traces/ok/../secret", "s3://traces/ok/./x", "s3://traces/ok//x", "s3://traces/ok/*", "s3://traces/ok/x?versionId=1"),
    *("s3://traces/ok::file:///etc/passwd", "simplecache::s3://traces/ok/x", "s3://user:key@traces/ok", "s3://traces/ok\n"),
    *("s3://traces", "s3://traces/okay", "s3://traces/secret/x", "s3://other/ok/x", "s3://127.0.0.1:80/ok", "s3://traces.ok/x"),
    "s3://arn:aws:s3:us-east-1:1:accesspoint/x/ok",
)  # fmt: skip


def test_nothing_but_the_allowed_places_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Other schemes, other buckets, folders that begin alike, ways up, chains, patterns: refused before any request."""

    def never(*_: Any) -> Any:
        raise AssertionError("a bucket was opened")

    service = make_service(Settings(data=tmp_path / "data", trace_stores=("s3://traces/ok/",)))
    monkeypatch.setattr("placement_api.store.traces.Buckets", never)
    for url in BAD:
        with pytest.raises(Exception, match=r"allowed store|no place in a bucket"):
            service.traces.fetch(url)
    with pytest.raises(AssertionError, match="opened"):
        service.traces.fetch("s3://traces/ok/x")
    service.database.close()
    for url in ("s3://a", "file:///tmp", "s3://bucket/../x"):
        with pytest.raises(OptionError):
            Settings(data=tmp_path, blobs=url)


def put(buckets: Buckets, place: Place, folder: Path) -> None:
    for file in folder.iterdir():
        buckets.upload(place.below(file.name), file)


def test_traces_are_fetched_from_an_allowed_store(
    make_server: Callable[..., Server], bucket: str, trace: Path, tmp_path: Path
) -> None:
    """A folder, an archive, a recording; the same content has the id that an upload has, a README is left out."""
    buckets, place = Buckets(), Place.parse(bucket).below("fetched")
    put(buckets, place.below("run"), trace)
    buckets.write(place.below("run/README.md"), b"about it")
    buckets.write(place.below("about/README.md"), b"about it")
    buckets.write(place.below("run.tgz"), tar_of(trace))
    put(buckets, place.below("log"), GOLDEN / "routing-log" / "layer-major")
    buckets.write(place.below("odd/x.pkl"), b"x")
    server = make_server(tmp_path / "data", "--traces-store", str(place))
    with server.client() as client:
        ids = {client.post("/v1/traces", files={"file": ("a.tgz", tar_of(trace))}).json()["id"]}
        for name in ("run", "run/", "run.tgz"):
            answer = client.post("/v1/traces/register", json={"url": f"{place}/{name}"})
            assert answer.status_code == 201, answer.text
            ids.add(answer.json()["id"])
            litter = ["left out 1 file that holds no traffic: README.md"]
            assert answer.json()["notes"] == ([] if name == "run.tgz" else litter)
        assert len(ids) == 1
        told = client.post(
            "/v1/traces/register", json={"url": f"{place}/log", "read_as": {"from": "routing-log"}}
        ).json()
        assert told["converted"]["reader"] == "routing-log"
        for name, said in (("nothing", "nothing at"), ("about", "nothing at"), ("odd", "no file of a trace")):
            assert (
                said in problem_of(client.post("/v1/traces/register", json={"url": f"{place}/{name}"}), 422)["detail"]
            )
        for url in (bucket, f"{place}x/run"):
            assert "not below" in problem_of(client.post("/v1/traces/register", json={"url": url}), 422)["detail"]
        for body in ({}, {"url": str(place), "path": "/x"}):
            problem_of(client.post("/v1/traces/register", json=body), 422)
    assert not list((server.data / "traces").glob(".incoming-*"))


def test_fetching_is_bounded(bucket: str, trace: Path, tmp_path: Path) -> None:
    """In bytes and in objects."""
    place = Place.parse(bucket).below(tmp_path.name)
    put(Buckets(), place, trace)
    for limits, said in (
        ({"unpacked_bytes": 100}, "more than 100 bytes"),
        ({"archive_members": 2}, "more than 2 objects"),
    ):
        settings = Settings(data=tmp_path / "data", trace_stores=(str(place),), limits=Limits(**limits))  # type: ignore[arg-type]
        service = make_service(settings)
        with pytest.raises(Exception, match=said):
            service.traces.fetch(str(place))
        service.database.close()
    assert not list((tmp_path / "data" / "traces").iterdir())


def test_results_in_a_bucket_survive_the_service_and_its_cache(
    make_server: Callable[..., Server], bucket: str, trace: Path, tmp_path: Path
) -> None:
    """After kill -9, with nothing left on this host but the database, all is there; the trace can be solved again."""
    server = make_server(tmp_path / "data", "--blobs", f"{bucket}/kept", "--cache-mib", "1")
    body: dict[str, Any] = {"cluster": {"num_nodes": 2}, "options": {"solver": "linear", "bound": "none"}}
    with server.client() as client:
        body["traces"] = [client.post("/v1/traces", files={"file": ("t.tgz", tar_of(trace))}).json()["id"]]
        answer = answered(client, "/v1/placements", body)
        assert answer.status_code == 200, answer.text
        first = client.get("/v1/placements").json()[0]["id"]
    server.kill()
    for name in ("cache", "traces"):
        shutil.rmtree(server.data / name, ignore_errors=True)
    assert not (server.data / "blobs").exists()
    server.start()
    with server.client() as client:
        assert client.get(f"/v1/placements/{first}").content == answer.content
        assert "<html" in client.get(f"/v1/placements/{first}/report").text
        body["options"]["seed"] = 1
        assert answered(client, "/v1/placements", body).status_code == 200
        assert client.delete(f"/v1/traces/{body['traces'][0]}").status_code == 204
    assert not list(Buckets().list(Place.parse(f"{bucket}/kept/traces")))


def test_a_bucket_that_is_away_is_told_without_its_address(
    make_server: Callable[..., Server], trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503, to be tried again; neither the endpoint nor keys in answers or in the log."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9/hidden-endpoint")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "hidden-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-secret")
    server = make_server(tmp_path / "data", "--blobs", "s3://bucket/kept")
    with server.client() as client:
        answers: list[httpx.Response] = [client.get("/readyz")]
        answers.append(client.post("/v1/traces", files={"file": ("t.tgz", tar_of(trace))}))
    for answer in answers:
        problem_of(answer, 503)
    assert "hidden" not in "".join(answer.text for answer in answers) + server.log.read_text()
