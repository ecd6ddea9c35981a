"""Answers as backends write them: whole, in chunks, without an end, before others; and connections that end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from placement_api.proxy.connection import HEAD_BYTES, HELD_BYTES, Broken
from placement_api.proxy.upstream import Address, Away, Upstream

from placement.errors import OptionError

OK = b"HTTP/1.1 200 OK\r\n"
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def backend(script: Script) -> AsyncIterator[tuple[Upstream, list[bytes]]]:
    """An upstream whose one backend reads a request and then does what the script says; the heads that came."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                heads.append(await reader.readuntil(b"\r\n\r\n"))
                if (length := heads[-1].lower().partition(b"content-length: ")[2]) != b"":
                    await reader.readexactly(int(length.partition(b"\r\n")[0]))
                await script(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    upstream = Upstream((f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/base/",))
    try:
        yield upstream, heads
    finally:
        upstream.close()
        server.close()


def says(*parts: bytes) -> Script:
    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0.005)

    return script


async def asked(upstream: Upstream, method: str = "POST", body: bytes | None = b"{}") -> tuple[int, Any, bytes]:
    async with upstream.ask(0, method, b"/x?y=1", [(b"X-Mine", b"1")], body) as answer:
        parts = []
        while part := await answer.more():
            parts.append(part)
        return answer.status, answer.headers, b"".join(parts)


def run(script: Script, *, method: str = "POST", times: int = 2) -> tuple[list[tuple[int, Any, bytes]], int]:
    """Answers to requests one after the other, and how many connections the upstream holds then."""

    async def main() -> tuple[list[tuple[int, Any, bytes]], int]:
        async with backend(script) as (upstream, _):
            answers = [await asked(upstream, method) for _ in range(times)]
            return answers, len(upstream._idle[0])

    return asyncio.run(main())


WHOLE = {
    "a length": [OK + b"Content-Length: 5\r\n\r\nhello"],
    "byte by byte": [bytes([one]) for one in OK + b"Content-Length: 5\r\n\r\nhello"],
    "chunks": [OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n", b"3\r\nllo\r\n0\r\nX-Trailer: 1\r\n\r\n"],
    "after hints": [b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK + b"Content-Length: 5\r\n\r\nhello"],
}


@pytest.mark.parametrize("what", WHOLE)
def test_an_answer_comes_whole_and_its_connection_is_used_again(what: str) -> None:
    """Trailers and hints stay here."""
    answers, idle = run(says(*WHOLE[what]))
    assert [(status, body) for status, _, body in answers] == [(200, b"hello")] * 2
    assert all({name for name, _ in headers} <= {b"content-length", b"transfer-encoding"} for _, headers, _ in answers)
    assert idle == 1


def test_a_body_may_end_with_its_connection() -> None:
    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"\r\nhel")
        await asyncio.sleep(0.005)
        writer.write(b"lo")
        writer.close()

    answers, idle = run(script)
    assert [body for _, _, body in answers] == [b"hello"] * 2 and idle == 0


@pytest.mark.parametrize(
    ("method", "said", "status"),
    [
        ("HEAD", OK + b"Content-Length: 5\r\n\r\n", 200),
        ("POST", b"HTTP/1.1 204 No Content\r\n\r\n", 204),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", 304),
    ],
)
def test_an_answer_may_be_a_head_alone(method: str, said: bytes, status: int) -> None:
    answers, _ = run(says(said), method=method)
    assert [(one[0], one[2]) for one in answers] == [(status, b"")] * 2


@pytest.mark.parametrize(
    "said",
    [
        OK + b"Content-Length: 5\r\nConnection: close\r\n\r\nhello",
        OK + b"Content-Length: 5\r\n\r\nhello" + OK + b"Content-Length: 6\r\n\r\nwicked",
        OK + b"Content-Length: 5\r\n\r\nhello...",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    ],
)
def test_a_connection_that_says_more_or_ends_is_not_used_again(said: bytes) -> None:
    """The next request gets its own answer, not what was said before."""
    answers, idle = run(says(said))
    assert [body for _, _, body in answers] == [b"hello"] * 2 and idle == 0


def test_what_is_said_without_being_asked_is_no_answer() -> None:
    async def main() -> None:
        late = OK + b"Content-Length: 6\r\n\r\nwicked"

        async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(OK + b"Content-Length: 5\r\n\r\nhello")
            asyncio.get_running_loop().call_later(0.02, writer.write, late)

        async with backend(script) as (upstream, heads):
            for _ in range(2):
                assert (await asked(upstream))[2] == b"hello"
                await asyncio.sleep(0.05)
            assert len(heads) == 2

    asyncio.run(main())


@pytest.mark.parametrize(
    "said",
    [
        b"no HTTP at all\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        OK + b"X: " + b"x" * HEAD_BYTES + b"\r\n",
        OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"Content-Length: five\r\n\r\n",
        b"HTTP/1.1 600 Odd\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 099 Odd\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_what_is_no_answer_is_broken(said: bytes) -> None:
    """And told apart from a connection that ended."""
    with pytest.raises(Broken) as broken:
        run(says(said), times=1)
    assert broken.value.refused


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200", OK + b"Content-Length: 9\r\n\r\nhel"])
def test_an_answer_that_breaks_off_is_broken(said: bytes) -> None:
    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        writer.close()

    with pytest.raises(Broken) as broken:
        run(script, times=1)
    assert not broken.value.refused


def test_the_backend_waits_for_a_client_that_takes_nothing() -> None:
    """Of a body without end no more is held than the bound and what one read brings."""
    part = b"x" * (1 << 16)

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"Content-Length: %d\r\n\r\n" % (400 * len(part)))
        for _ in range(400):
            writer.write(part)
            await writer.drain()

    async def main() -> None:
        async with backend(script) as (upstream, _), upstream.ask(0, "POST", b"/", (), b"") as answer:
            await asyncio.sleep(0.1)
            assert answer._held < HELD_BYTES + (1 << 19)
            size = 0
            while came := await answer.more():
                size += len(came)
            assert size == 400 * len(part)

    asyncio.run(main())


def test_a_request_is_written_as_it_came() -> None:
    """Below the path of the backend; a long body too, and none has no length."""
    long = b"y" * 300_000

    async def main() -> list[bytes]:
        async with backend(says(OK + b"Content-Length: 0\r\n\r\n")) as (upstream, heads):
            await asked(upstream, body=long)
            await asked(upstream, "GET", None)
            await asked(upstream, "POST", None)
            assert upstream.away() == frozenset()
            return heads

    first, second, third = asyncio.run(main())
    assert first.startswith(b"POST /base/x?y=1 HTTP/1.1\r\nhost: 127.0.0.1:")
    assert first.endswith(b"\r\nx-mine: 1\r\ncontent-length: 300000\r\n\r\n")
    assert b"content-length" not in second and third.endswith(b"content-length: 0\r\n\r\n")


def test_idle_connections_are_closed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("placement_api.proxy.upstream.KEEP_S", 0.05)

    async def main() -> None:
        async with backend(says(OK + b"Content-Length: 0\r\n\r\n")) as (upstream, _):
            await asked(upstream)
            assert len(upstream._idle[0]) == 1
            await asyncio.sleep(0.2)
            assert len(upstream._idle[0]) == 0 and upstream._sweep is None

    asyncio.run(main())


def test_a_backend_that_cannot_be_reached_is_away() -> None:
    async def main() -> None:
        upstream = Upstream(("http://127.0.0.1:1", "http://no-such-host.invalid:1"))
        for at in range(2):
            with pytest.raises(Away):
                async with upstream.ask(at, "GET", b"/", (), None):
                    pass
        assert upstream.away() == {0, 1}

    asyncio.run(main())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://10.0.0.1:8000", ("10.0.0.1", 8000, False, b"10.0.0.1:8000", b"")),
        ("https://engine/base/", ("engine", 443, True, b"engine", b"/base")),
        ("http://[::1]:80", ("::1", 80, False, b"[::1]:80", b"")),
    ],
)
def test_addresses_are_read(given: str, expected: tuple[Any, ...]) -> None:
    one = Address.of(given)
    assert (one.host, one.port, one.tls, one.authority, one.prefix) == expected


@pytest.mark.parametrize(
    "given", ["ftp://x", "x:1", "http://", "http://x:99999", "http://x?y", "http://u:p@x", "http://x/\r\n", "http://é/"]
)
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(OptionError, match="is no address of a server"):
        Address.of(given)
