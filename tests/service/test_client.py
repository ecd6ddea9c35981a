"""The client goes on where a service was busy, away, or had the trace already."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests_service import Server

from placement import Cluster, Options
from placement.client import Client
from placement.errors import InputError, PlacementError
from placement.support import http_service

BUSY = {"type": "about:blank", "title": "", "status": 0, "detail": "no room", "mend": "wait"}


class Grumpy(ThreadingHTTPServer):
    """Answers with each of these in turn, a status and headers, then 200; keeps what was asked, with its body."""

    def __init__(self, *turns: tuple[int, dict[str, str]]) -> None:
        super().__init__(("127.0.0.1", 0), GrumpyHandler)
        self.turns = list(turns)
        self.asked: list[tuple[str, bytes, float]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class GrumpyHandler(BaseHTTPRequestHandler):
    server: Grumpy

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.server.asked.append((self.path, body, time.monotonic()))
        status, headers = self.server.turns.pop(0) if self.server.turns else (200, {})
        content = json.dumps({"id": "a"} if status == 200 else BUSY | {"status": status}).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def grumpy() -> Iterator[Any]:
    servers: list[Grumpy] = []

    def make(*turns: tuple[int, dict[str, str]]) -> Grumpy:
        servers.append(Grumpy(*turns))
        threading.Thread(target=servers[-1].serve_forever, args=(0.05,), daemon=True).start()
        return servers[-1]

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


def submit(client: Client) -> str:
    return client.submit(["t"], Cluster.fit(8, num_nodes=2), Options())


def test_a_busy_service_is_asked_again(grumpy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same request, after pauses that grow, or as long as the service says."""
    monkeypatch.setattr(http_service, "FIRST_PAUSE_S", 0.05)
    server = grumpy((503, {}), (429, {}), (503, {"Retry-After": "1"}))
    assert submit(Client(server.url)) == "a"
    assert len(server.asked) == 4
    assert len({(path, body) for path, body, _ in server.asked}) == 1
    times = [when for _, _, when in server.asked]
    pauses = [after - before for before, after in pairwise(times)]
    assert pauses[0] >= 0.05 and pauses[1] >= 0.1 and pauses[2] >= 1.0


def test_an_upload_is_sent_again_from_its_beginning(grumpy: Any, monkeypatch: pytest.MonkeyPatch, trace: Path) -> None:
    """A body that is a file was read to its end."""
    monkeypatch.setattr(http_service, "FIRST_PAUSE_S", 0.05)
    server = grumpy((200, {}), (200, {}), (503, {}))
    assert Client(server.url).upload(trace) == "a"
    (_, first, _), (path, second, _) = server.asked[-2:]
    assert path == "/v1/traces" and first == second and len(first) > 1000


def test_patience_ends(grumpy: Any) -> None:
    """The answer is then what the service said; without patience that is at once, and other errors are never asked
    about again."""
    server = grumpy(*[(429, {"Retry-After": "30"})] * 5)
    began = time.monotonic()
    with pytest.raises(InputError, match="no room; wait"):
        submit(Client(server.url, patience_s=2.0))
    with pytest.raises(InputError, match="no room"):
        submit(Client(server.url, patience_s=0.0))
    assert time.monotonic() - began < 2 and len(server.asked) == 2
    for status, kind in ((422, InputError), (500, PlacementError)):
        broken = grumpy((status, {}))
        with pytest.raises(kind):
            submit(Client(broken.url))
        assert len(broken.asked) == 1


def test_nobody_is_waited_for_who_never_answered() -> None:
    """An address where nothing listens is told at once."""
    began = time.monotonic()
    with pytest.raises(InputError, match="does not answer"):
        submit(Client("http://127.0.0.1:1"))
    assert time.monotonic() - began < 5


def test_a_job_is_waited_for_through_a_restart(tmp_path: Path, trace: Path) -> None:
    """kill -9 while it runs: who waits hears of the end; where the service stays away, that it is."""
    server = Server(data=tmp_path / "data").start()
    ended: list[Any] = []

    def wait(job: str, patience_s: float) -> None:
        try:
            ended.append(Client(server.url, patience_s=patience_s).wait(job)["state"])
        except PlacementError as error:
            ended.append(str(error))

    try:
        client = Client(server.url)
        work = Options(solver="anneal", bound="none", work_limit=3_000_000)
        job = client.submit([client.upload(trace)], Cluster.fit(8, num_nodes=2, gpus_per_node=2), work)
        patient = threading.Thread(target=wait, args=(job, 60.0))
        patient.start()
        time.sleep(0.5)
        server.kill()
        time.sleep(0.5)
        server.start()
        patient.join(120)
        assert ended == ["done"]
        forever = Options(solver="anneal", bound="none", work_limit=50_000_000_000)
        job = client.submit([client.upload(trace)], Cluster.fit(8, num_nodes=2, gpus_per_node=2), forever)
        hasty = threading.Thread(target=wait, args=(job, 2.0))
        hasty.start()
        time.sleep(0.5)
        server.kill()
        hasty.join(30)
        assert "does not answer" in ended[-1]
    finally:
        server.kill()


def test_a_trace_is_sent_once(tmp_path: Path, trace: Path, write_trace: Any) -> None:
    """The service is asked whether it has this content; other content, or a trace that was deleted, is sent."""
    server = Server(data=tmp_path / "data").start()
    try:
        client = Client(server.url)
        name = client.upload(trace)
        assert client.upload(trace) == name
        assert sent(server) == 1
        many = tmp_path / "many"
        many.mkdir()
        for one in range(2):
            write_trace(many / f"day{one}", tokens=50, num_experts=8)
        assert client.upload(many) == client.upload(many) != name
        assert sent(server) == 2
        with server.client() as other:
            assert other.delete(f"/v1/traces/{name}").status_code == 204
        assert client.upload(trace) == name
        assert sent(server) == 3
    finally:
        server.kill()


def sent(server: Server) -> int:
    """Uploads, by the audit log."""
    return server.log.read_text().count('"route": "/v1/traces", "status": 201')
