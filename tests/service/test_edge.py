"""Strangers at the door: whatever they send, or do not send, others are answered."""

from __future__ import annotations

import asyncio
import resource
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from behind import Behind, closed
from placement_api.lobby import AT_ONCE, Lobby, most_connections
from placement_api.wire import listen
from tests_service import Server, problem_of, statuses, tar_of

from placement.errors import OptionError

HALF = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "
SOON_S = 2.0


@pytest.mark.parametrize("sent", [b"", b"G", HALF])
def test_who_sends_no_head_is_hung_up_on(sent: bytes) -> None:
    """After the time for it, however much of a head there is, also if a byte comes now and then."""
    with Behind(100, 0.5) as behind, behind.connect(sent) as silent, behind.connect(HALF) as dripping:
        began = time.monotonic()
        while time.monotonic() - began < 5:
            try:
                dripping.sendall(b"x")
            except OSError:
                break
            time.sleep(0.05)
        assert 0.4 < time.monotonic() - began < 4
        assert closed(silent)


def test_a_second_head_has_the_same_time() -> None:
    """A connection that was answered once and begins another request is hung up on as well."""
    with Behind(100, 0.5) as behind, behind.connect(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") as kept:
        assert kept.recv(1000).startswith(b"HTTP/1.1 200")
        kept.sendall(HALF)
        assert closed(kept)


def test_the_next_connection_takes_the_place_of_who_waits_longest() -> None:
    """Not of one that is being answered; where all are, the next is refused."""
    with Behind(3, 60) as behind, ExitStack() as stack:
        busy = [stack.enter_context(behind.connect(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")) for _ in range(2)]
        for _ in busy:
            assert behind.slow.acquire(timeout=5)
        silent = [stack.enter_context(behind.connect(HALF)) for _ in range(2)]
        assert closed(silent[0])
        assert httpx.get(f"http://127.0.0.1:{behind.port}/", timeout=SOON_S).status_code == 200
        assert closed(silent[1])
        third = stack.enter_context(behind.connect(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n"))
        assert behind.slow.acquire(timeout=5)
        assert closed(stack.enter_context(behind.connect(HALF)))
        behind.go.set()
        for one in (*busy, third):
            assert one.recv(1000).startswith(b"HTTP/1.1 200")


class Guest:
    """Notes in which turn of the event loop it was hung up on."""

    def __init__(self, turns: list[int]) -> None:
        self.turns = turns

    def hang_up(self) -> None:
        self.turns[-1] += 1


def test_many_who_send_no_head_are_hung_up_on_in_turns() -> None:
    """All of them, some at a time: whoever asks is answered between."""
    turns = [0]

    async def wait() -> None:
        lobby = Lobby(most=1000, head_s=0.0)
        for _ in range(5 * AT_ONCE // 2):
            lobby.enter(Guest(turns))
        while sum(turns) < 5 * AT_ONCE // 2:
            turns.append(0)
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(wait(), 30))
    assert max(turns) == AT_ONCE
    assert [turn for turn in turns if turn] == [AT_ONCE, AT_ONCE, AT_ONCE // 2]


def test_half_of_the_descriptors_are_for_connections() -> None:
    """Of those that the process may have, which it takes all."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[0], 100), before[1]))
        assert most_connections(10) == 10
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 100
        assert most_connections(1 << 30) <= 1 << 15
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit is not installed")
def test_half_open_heads_stop_no_health_check(tmp_path: Path, trace: Path) -> None:
    """400 of them at 200 descriptors: health checks and uploads are answered soon, and the log stays short."""
    server = Server(data=tmp_path / "data", prefix=("prlimit", "--nofile=200:200")).start()
    try:
        with ExitStack() as stack, server.client() as client:
            client.post("/v1/traces", files={"file": ("t.tgz", tar_of(trace))}).raise_for_status()
            for _ in range(400):
                opened = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=5))
                opened.sendall(HALF)
            longest = 0.0
            for _ in range(20):
                began = time.monotonic()
                assert httpx.get(f"{server.url}/healthz", timeout=10).status_code == 200
                longest = max(longest, time.monotonic() - began)
            assert longest < SOON_S
            answer = client.post("/v1/traces", files={"file": ("t.tgz", tar_of(trace))})
            assert answer.status_code == 201
            assert psutil.Process(server.pid).num_fds() < 200
            for _ in range(300):
                with socket.create_connection(("127.0.0.1", server.port), timeout=5) as opened:
                    opened.sendall(b"no HTTP at all\r\n\r\n")
                    opened.recv(1000)
        assert server.log.stat().st_size < 20_000
    finally:
        server.kill()


@pytest.fixture(scope="module")
def guarded(
    tmp_path_factory: pytest.TempPathFactory, make_server: Callable[..., Server], run_cli: Any
) -> Iterator[tuple[Server, str]]:
    data = tmp_path_factory.mktemp("edge") / "data"
    token = run_cli("token", "create", "ci", "--data", data).stdout.strip()
    yield make_server(data), token


def test_who_guesses_tokens_is_slowed_down(guarded: tuple[Server, str]) -> None:
    """429 without a look at the database, while health checks and who has a token go on."""
    server, token = guarded
    with server.client() as stranger, server.client(token) as known:
        assert known.get("/v1/jobs").status_code == 200
        asked = [f"GET /v1/jobs HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x{n}\r\n\r\n" for n in range(2000)]
        asked.append("GET /login HTTP/1.1\r\nHost: a\r\n\r\n")
        codes = statuses(server.port, "".join(asked).encode(), len(asked))
        assert set(codes) == {b"401", b"429"} and codes[-1] == b"429"
        assert codes.count(b"401") < 1000
        assert known.get("/v1/jobs").status_code == 200
        assert stranger.get("/healthz").status_code == stranger.get("/readyz").status_code == 200
        time.sleep(1.1)
        problem_of(stranger.get("/v1/jobs"), 401)


def test_a_login_from_another_site_is_refused(guarded: tuple[Server, str]) -> None:
    """A page elsewhere cannot log a browser in: neither one that says where it is nor one that hides it."""
    server, token = guarded
    time.sleep(1.1)
    with server.client() as client:
        for origin in ("https://evil.example", "null"):
            answer = client.post("/login", data={"token": token}, headers={"Origin": origin})
            problem_of(answer, 403)
            assert "set-cookie" not in answer.headers
        own = client.post("/login", data={"token": token}, headers={"Origin": server.url})
        assert own.status_code == 303


@pytest.mark.parametrize(
    ("headers", "secure", "hsts"),
    [
        ({}, False, False),
        ({"X-Forwarded-Proto": "https"}, True, True),
        ({"Host": "placement.example", "Origin": "https://placement.example"}, True, False),
        ({"Host": "placement.example", "Origin": "http://placement.example"}, False, False),
    ],
)
def test_the_cookie_is_for_tls_where_there_is_tls(
    guarded: tuple[Server, str], headers: dict[str, str], secure: bool, hsts: bool
) -> None:
    """As a proxy that is trusted says, which one on this machine is, or the browser itself; HSTS by the proxy alone."""
    server, token = guarded
    with server.client() as client:
        answer = client.post("/login", data={"token": token}, headers=headers)
    assert answer.status_code == 303
    cookie = answer.headers["set-cookie"].lower()
    assert ("secure" in cookie) == secure
    assert "httponly" in cookie and "samesite=strict" in cookie
    assert ("strict-transport-security" in answer.headers) == hsts


def test_a_port_that_is_taken_is_told_in_one_line(server: Server) -> None:
    """What cannot be listened on, and what to do."""
    with pytest.raises(OptionError, match=f"127.0.0.1:{server.port}: .*; give another --port"):
        listen("127.0.0.1", server.port)
