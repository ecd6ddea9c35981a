"""A token goes to the server it was given for, whatever that server answers: real servers on loopback redirect."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from placement import Cluster
from placement.analysis.watch.sglang_recorder import SGLangRecorder
from placement.client import Client
from placement.errors import InputError

TOKEN = "plc_secret"
CODES = (301, 302, 303, 307, 308)


@dataclass(frozen=True, slots=True)
class Asked:
    method: str
    path: str
    token: str | None
    body: bytes


class Peer(ThreadingHTTPServer):
    """Answers JSON, or for paths of `redirects` a status and a Location; notes whatever arrives."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.scheme = "http"
        self.asked: list[Asked] = []
        self.redirects: dict[str, tuple[int, str]] = {}
        self.missing_bytes = 0  # of every answer that is promised and not sent

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Peer

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.server.asked.append(Asked(self.command, self.path, self.headers["Authorization"], body))
        status, where = self.server.redirects.get(self.path.partition("?")[0], (200, ""))
        answer = b'{"id": "a1"}'
        self.send_response(status)
        if where:
            self.send_header("Location", where)
        self.send_header("Content-Length", str(len(answer) + self.server.missing_bytes))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def peer() -> Iterator[Callable[..., Peer]]:
    peers: list[Peer] = []

    def start(context: ssl.SSLContext | None = None) -> Peer:
        one = Peer()
        if context is not None:
            one.socket = context.wrap_socket(one.socket, server_side=True)
            one.scheme = "https"
        threading.Thread(target=one.serve_forever, daemon=True).start()
        peers.append(one)
        return one

    yield start
    for one in peers:
        one.shutdown()
        one.server_close()


def ask(client: Client, method: str) -> None:
    if method == "GET":
        client.placement("p")
    else:
        client.submit(["t"], Cluster.fit(8, num_nodes=2))


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/placements/p"), ("POST", "/v1/placements")])
def test_nothing_is_sent_to_another_server(peer: Callable[..., Peer], code: int, method: str, path: str) -> None:
    """Another port is another server: it gets neither the token nor the request, and the message names both."""
    here, there = peer(), peer()
    here.redirects[path] = (code, f"{there.url}/v1/placements/p")
    with pytest.raises(InputError) as refused:
        ask(Client(here.url, TOKEN), method)
    assert here.url in str(refused.value) and there.url in str(refused.value)
    assert [one.token for one in here.asked] == [f"Bearer {TOKEN}"]
    assert there.asked == []


@pytest.mark.parametrize(
    "where", ["http://localhost:{port}/x", "//localhost:{port}/x", "http://a@127.0.0.1:{port}/x", "http://[::1/x"]
)
def test_another_name_of_the_host_is_another_server(peer: Callable[..., Peer], where: str) -> None:
    """Who owns a name is not known here; what is no address is told as such."""
    here = peer()
    here.redirects["/v1/placements/p"] = (307, where.format(port=here.server_address[1]))
    with pytest.raises(InputError, match="address"):
        Client(here.url, TOKEN).placement("p")
    assert len(here.asked) == 1


def test_a_token_given_over_tls_is_not_sent_in_the_clear(
    peer: Callable[..., Peer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From https to http of the same host."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: no certificate can be made")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    named = ("-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1")
    subprocess.run([*made, *named, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    here, there = peer(context), peer()
    here.redirects["/v1/placements/p"] = (302, f"{there.url}/v1/placements/p")
    with pytest.raises(InputError) as refused:
        Client(here.url, TOKEN).placement("p")
    assert here.url in str(refused.value) and there.url in str(refused.value)
    assert len(here.asked) == 1
    assert there.asked == []


@pytest.mark.parametrize("code", CODES)
def test_a_redirect_within_the_server_is_followed(peer: Callable[..., Peer], code: int) -> None:
    """With the token; relative and absolute."""
    here = peer()
    here.redirects["/v1/placements/p"] = (code, "/moved")
    here.redirects["/moved"] = (code, f"{here.url}/again")
    assert Client(here.url, TOKEN).placement("p") == b'{"id": "a1"}'
    assert here.asked[-1] == Asked("GET", "/again", f"Bearer {TOKEN}", b"")


@pytest.mark.parametrize("code", CODES)
def test_a_post_is_sent_again_whole_or_refused(
    peer: Callable[..., Peer], code: int, write_trace: Any, tmp_path: Path
) -> None:
    """307 and 308 get the same body, of memory or of disk; the others would make it a GET, which solves nothing."""
    here = peer()
    client = Client(here.url, TOKEN)
    folder = write_trace(tmp_path / "trace").folder
    here.redirects |= {"/v1/placements": (code, "/solve"), "/v1/traces": (code, "/upload")}
    for post in (lambda: ask(client, "POST"), lambda: client.upload(folder)):
        if code not in (307, 308):
            with pytest.raises(InputError, match=f"redirects a POST with status {code}"):
                post()
            assert here.asked[-1].path in ("/v1/placements", "/v1/traces")
            continue
        post()
        first, second = here.asked[-2:]
        assert second.path in ("/solve", "/upload")
        assert second.body == first.body and first.body
        assert (second.method, second.token) == ("POST", f"Bearer {TOKEN}")


def test_a_server_that_redirects_for_ever_is_left(peer: Callable[..., Peer]) -> None:
    """With an error that names it."""
    here = peer()
    here.redirects["/v1/placements/p"] = (302, "/v1/placements/p")
    with pytest.raises(InputError, match=here.url):
        Client(here.url, TOKEN).placement("p")


def test_an_engine_does_not_send_its_recorder_elsewhere(peer: Callable[..., Peer]) -> None:
    """The follower of an engine asks that engine alone."""
    here, there = peer(), peer()
    here.redirects["/start_expert_distribution_record"] = (307, f"{there.url}/start_expert_distribution_record")
    with pytest.raises(InputError, match=there.url):
        SGLangRecorder(url=here.url).start()
    assert there.asked == []


def test_an_answer_that_breaks_off_is_told(peer: Callable[..., Peer]) -> None:
    """Half a placement is none, and no traceback."""
    here = peer()
    here.missing_bytes = 5
    with pytest.raises(InputError, match="broke off amid its answer"):
        Client(here.url).placement("p")
