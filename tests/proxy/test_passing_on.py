"""What is passed on is what came: bytes, headers, streams, ends; and it comes at once."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine, Seen, plain, stream
from route_front import WORDS, Front, Sample, arguments

EVENTS = [b'data: {"choices": [%d]}\n\n' % at for at in range(6)] + [b"data: [DONE]\n\n"]


def raw(front: Front, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """The answer to a request that is written byte for byte."""
    with socket.create_connection(("127.0.0.1", front.port), timeout=10) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause_s)
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
    return answer


def test_streams_are_not_held_back(front: Front, engine: FakeEngine) -> None:
    """Every event is here long before the next one is written."""
    engine.answer = stream(EVENTS, pause_s=0.2)
    with front.client.stream("POST", "/v1/completions", json={"prompt": WORDS[0], "stream": True}) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        came = [(part, time.monotonic()) for part in answer.iter_raw()]
    assert b"".join(part for part, _ in came) == b"".join(EVENTS)
    assert [part for part, _ in came] == EVENTS
    gaps = [after - before for (_, before), (_, after) in pairwise(came)]
    assert min(gaps) > 0.1, gaps


ODD_BODIES = {
    "cut": b'{"prompt": "alpha"',
    "no text": b"\xff\xfe\x00",
    "latin-1": b'{"prompt": "\xe9\xe8 alpha"}',
    "a list": b'["alpha"]',
    "a string": b'"alpha"',
    "odd types": b'{"messages": 7, "prompt": {"a": [1]}, "n": "x", "max_tokens": -3, "session_params": []}',
    "mixed ids": b'{"prompt": [[1, "a"], null, 1.5, true]}',
    "endless ids": b'{"prompt": [' + b"9" * 60 + b"]}",
    "huge ids": b'{"prompt": [99999999999]}',
    "half a letter": b'{"prompt": "\\ud800 alpha"}',
    "deep": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "long": ('{"prompt": "' + "ein l\u00e4ngerer Text \u6f22\u5b57 \U0001f600 " * 40_000 + '"}').encode(),
}


@pytest.mark.parametrize("what", ODD_BODIES)
def test_odd_bodies_are_passed_on_as_they_came(front: Front, engine: FakeEngine, what: str) -> None:
    """It is the engine's part to refuse them; the proxy counts what it could not read, and goes on."""
    before = front.series()
    answer = front.client.post("/v1/completions", content=ODD_BODIES[what])
    assert answer.status_code == 200
    assert engine.last().body == ODD_BODIES[what]
    after = front.series()
    unread = 'placement_route_unchanged_total{why="unread"}'
    read = what in ("odd types", "mixed ids", "half a letter", "long")
    assert after.get(unread, 0) - before.get(unread, 0) == (0 if read else 1)
    failed = 'placement_route_unchanged_total{why="failed"}'
    assert after.get(failed) == before.get(failed)


def test_a_packed_body_is_passed_on(front: Front, engine: FakeEngine) -> None:
    import gzip

    body = gzip.compress(b'{"prompt": "alpha"}')
    front.client.post("/v1/completions", content=body, headers={"Content-Encoding": "gzip"})
    assert (engine.last().body, engine.last().header("content-encoding")) == (body, "gzip")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_other_pages_are_passed_on(front: Front, engine: FakeEngine, method: str) -> None:
    answer = front.client.request(method, "/v1/models?a=b%20c&a=%2F", headers={"Authorization": "Bearer key"})
    seen = engine.last()
    assert (answer.status_code, seen.method, seen.target) == (200, method, "/v1/models?a=b%20c&a=%2F")
    assert answer.headers["content-length"] == "20"
    assert answer.content == (b"" if method == "HEAD" else b'{"object": "answer"}')
    assert seen.header("authorization") == "Bearer key"
    assert seen.header("content-length") is None and seen.header("x-data-parallel-rank") is None


def test_a_path_is_not_made_anew(front: Front, engine: FakeEngine) -> None:
    for target in ("/a%2Fb/../c", "//x", "/%E4%B8%AD?q=%zz"):
        head = f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        assert b"200 OK" in raw(front, head)
        assert engine.last().target == target


@pytest.mark.parametrize("target", ["*", "@127.0.0.1:1/", "x@127.0.0.1:1/", "127.0.0.1:1", "?x"])
def test_a_target_cannot_name_another_server(front: Front, engine: FakeEngine, target: str) -> None:
    came = raw(front, f"OPTIONS {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert came[:12] == b"HTTP/1.1 400"
    assert engine.seen == []


def test_connections_to_the_engine_are_used_again(front: Front, engine: FakeEngine) -> None:
    front.chat("alpha")
    before = engine.connections
    for _ in range(5):
        assert front.chat("alpha").status_code == 200
    assert engine.connections == before


def test_headers_go_on_but_those_of_the_connection(front: Front, engine: FakeEngine) -> None:
    """Repeated ones are kept in order; what `Connection` names stays here (RFC 9110)."""

    async def answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 207 Odd\r\nX-Two: 1\r\nX-Two: 2\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n")
        writer.write(
            b"Connection: X-Mine, keep-alive\r\nX-Mine: 1\r\nKeep-Alive: timeout=9\r\nContent-Length: 2\r\n\r\nhi"
        )
        await writer.drain()

    engine.answer = answer
    head = b"POST /v1/completions HTTP/1.1\r\nHost: front\r\nX-Req: 1\r\nX-Req: 2\r\nTE: trailers\r\n"
    head += b"Connection: close, X-Private\r\nX-Private: 1\r\nProxy-Authorization: x\r\nContent-Length: 19\r\n\r\n"
    came = raw(front, head + b'{"prompt": "alpha"}')
    assert came.startswith(b"HTTP/1.1 207 ")
    lines = came.partition(b"\r\n\r\n")[0].lower().split(b"\r\n")
    assert [line for line in lines if line.startswith((b"x-two", b"set-cookie"))] == [
        b"x-two: 1",
        b"x-two: 2",
        b"set-cookie: a=1",
        b"set-cookie: b=2",
    ]
    assert not [line for line in lines if line.startswith((b"x-mine", b"keep-alive"))]
    names = [name.lower() for name, _ in engine.last().headers]
    assert [value for name, value in engine.last().headers if name.lower() == "x-req"] == ["1", "2"]
    assert not {"te", "x-private", "proxy-authorization", "keep-alive", "user-agent", "accept-encoding"} & set(names)
    assert engine.last().header("host") == f"127.0.0.1:{engine.port}"


def test_a_chunked_request_goes_home(front: Front, engine: FakeEngine) -> None:
    def parts() -> Any:
        yield b'{"prompt": "ga'
        time.sleep(0.05)
        yield b'mma gamma"}'

    assert front.client.post("/v1/completions", content=parts()).status_code == 200
    assert engine.last().body == b'{"prompt": "gamma gamma"}'
    assert engine.last().header("x-data-parallel-rank") in ("4", "5")


def test_errors_of_the_engine_are_passed_on(front: Front, engine: FakeEngine) -> None:
    async def answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 429 Slow\r\nRetry-After: 7\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()

    engine.answer = answer
    came = front.chat("alpha")
    assert (came.status_code, came.headers["retry-after"], came.content) == (429, "7", b"{}")


def test_an_answer_that_breaks_off_breaks_off(front: Front, engine: FakeEngine) -> None:
    """The client sees what came, and that the end is missing."""
    engine.answer = stream(EVENTS[:3], end=False)
    came = b""
    with (
        pytest.raises(httpx.RemoteProtocolError),
        front.client.stream("POST", "/v1/completions", json={"prompt": "alpha"}) as answer,
    ):
        for part in answer.iter_raw():
            came += part
    assert came == b"".join(EVENTS[:3])
    assert any("midway" in name for name in front.series())
    engine.answer = plain
    assert front.chat("alpha").status_code == 200


def test_an_engine_that_closes_without_an_answer_is_a_502(front: Front, engine: FakeEngine) -> None:
    async def answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.close()

    engine.answer = answer
    came = front.chat("alpha")
    assert (came.status_code, came.json()["error"]["code"]) == (502, 502)
    assert len(engine.seen) == 1, "what an engine may have begun is not sent again"


def test_the_engine_hears_when_a_client_goes_away(front: Front, engine: FakeEngine) -> None:
    """In a stream, and while the engine is silent; no tokens stay in flight."""
    for parts in (EVENTS[:1], []):
        engine.seen.clear()

        engine.answer = stream(parts, pause_s=30) if parts else answer_never
        with pytest.raises(httpx.ReadTimeout):
            front.client.post("/v1/completions", json={"prompt": "alpha"}, timeout=0.5)
        assert engine.last().gone.wait(5)
    engine.answer = plain
    series = front.series()
    assert series["placement_route_cancelled_total"] >= 2
    assert series["placement_route_running"] == 0
    assert all(value == 0 for name, value in series.items() if "tokens_in_flight" in name)


async def answer_never(seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Silent, as in a long prefill."""
    await asyncio.sleep(30)


def test_tokens_in_flight_are_those_of_requests_that_run(front: Front, engine: FakeEngine) -> None:
    engine.answer = stream(EVENTS[:2], pause_s=0.3)
    with front.client.stream(
        "POST", "/v1/completions", json={"prompt": "delta delta delta", "max_tokens": 5, "n": 2}
    ) as answer:
        parts = answer.iter_raw()
        next(parts)
        with httpx.Client(base_url=str(front.client.base_url), trust_env=False) as other:
            text = other.get("/metrics").text
        for _ in parts:
            pass
    assert 'placement_route_tokens_in_flight{node="3"} 13.0' in text
    assert front.series()['placement_route_tokens_in_flight{node="3"}'] == 0


def test_a_backend_that_is_away_is_gone_around(fronts: Callable[..., Front], sample: Sample) -> None:
    """Requests whose home is away go to another node; with none left they are refused, and later served again."""
    engines = [FakeEngine() for _ in range(4)]
    front = fronts(*arguments(sample, *(one.url for one in engines)), shared=False)
    try:
        engines[1].stop()
        for _ in range(3):
            assert front.chat("beta beta").status_code == 200
        assert sum(len(one.seen) for one in engines) == 3
        assert front.series()["placement_route_elsewhere_total"] >= 1
        assert front.client.get("/readyz").status_code == 200
        for one in engines:
            one.stop()
        time.sleep(1.1)
        refused = front.chat("beta beta")
        assert (refused.status_code, refused.json()["error"]["type"]) == (502, "placement_route")
        assert front.client.get("/readyz").status_code == 503
        assert front.client.get("/healthz").status_code == 200
    finally:
        front.stop()
        for one in engines:
            one.stop()


def test_json_stays_as_it_was(front: Front, engine: FakeEngine) -> None:
    body = b'{ "prompt" :"alpha",\n"temperature": 1.0000000000000000001, "big": 123456789012345678901234567890 }'
    front.client.post("/v1/completions", content=body)
    assert engine.last().body == body


def test_what_trails_a_body_is_no_header(front: Front, engine: FakeEngine) -> None:
    """A client that may not set a header cannot set the header behind its body either (RFC 9110, 6.5.1)."""
    head = b"POST /v1/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = raw(front, head + b"2\r\n{}\r\n0\r\nX-Data-Parallel-Rank: 7\r\nAuthorization: Bearer evil\r\n\r\n")
    assert answer[:12] == b"HTTP/1.1 200"
    assert engine.last().body == b"{}"
    assert engine.last().header("x-data-parallel-rank") is None and engine.last().header("authorization") is None


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_a_body_may_tell_a_length(front: Front, engine: FakeEngine, status: int) -> None:
    """The answer is whole, and the connection serves the next request."""

    async def answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 %d Odd\r\nETag: a\r\nContent-Length: 100\r\n\r\n" % status)
        await writer.drain()

    engine.answer = answer
    request = b"GET /x HTTP/1.1\r\nHost: x\r\n%s\r\n"
    came = raw(front, request % b"", request % b"Connection: close\r\n", pause_s=0.2)
    assert came.count(b"HTTP/1.1 %d" % status) == 2 and b"content-length" not in came.lower()


def test_a_client_that_asked_twice_and_goes_away_ends_its_request(front: Front, engine: FakeEngine) -> None:
    """The request that runs is ended at the engine also where another one waits behind it; nothing is logged."""
    engine.answer = stream(EVENTS * 50, pause_s=0.1)
    before = front.series().get("placement_route_cancelled_total", 0)
    with socket.create_connection(("127.0.0.1", front.port), timeout=10) as connection:
        connection.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
        connection.recv(1 << 16)
    assert engine.last().gone.wait(5)
    assert front.series()["placement_route_cancelled_total"] == before + 1
