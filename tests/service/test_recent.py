"""What is answered from memory is what the store says, and is forgotten with it."""

from __future__ import annotations

import asyncio
import json
import socket
import sqlite3
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from placement_api.memory import Fresh, Memory, Once
from tests_service import Server, answered, problem_of

COUNTS = [[9, 0, 0, 0, 0, 0, 0, 7], [0, 5, 5, 0, 0, 0, 0, 0]]


@pytest.fixture
def name(client: httpx.Client, trace_id: str, request: pytest.FixtureRequest) -> str:
    """A placement of the test's own."""
    return _solved(client, trace_id, sum(request.node.name.encode()))


@pytest.fixture(scope="module")
def placed(client: httpx.Client, trace_id: str) -> str:
    """A placement that is only read."""
    return _solved(client, trace_id, 0)


def _solved(client: httpx.Client, trace_id: str, seed: int) -> str:
    options = {"work_limit": 500, "bound": "none", "seed": seed}
    body = {"traces": [trace_id], "cluster": {"num_nodes": 2, "gpus_per_node": 2}, "options": options, "group": {}}
    answer = answered(client, "/v1/placements", body)
    assert answer.status_code == 200, answer.text
    return str(answer.headers["content-location"].rpartition("/")[2])


@pytest.mark.parametrize("file", ["", "/report", "/grouping"])
def test_a_file_is_the_same_from_memory_and_not_sent_again_to_who_has_it(
    client: httpx.Client, name: str, file: str
) -> None:
    """First from disk, then from memory: the same bytes, packed or not, and a 304 for each one's ETag."""
    path = f"/v1/placements/{name}{file}"
    plain = [client.get(path, headers={"Accept-Encoding": coding}) for coding in ("identity", "gzip;q=0", "")]
    packed = [client.get(path, headers={"Accept-Encoding": "br, gzip"}) for _ in range(2)]
    assert {(one.content, one.headers["etag"], one.headers["content-type"]) for one in plain} == {
        (plain[0].content, plain[0].headers["etag"], packed[0].headers["content-type"])
    }
    assert {(one.content, one.headers["content-encoding"]) for one in packed} == {(plain[0].content, "gzip")}
    tags = [one.headers["etag"] for one in (plain[0], packed[0])]
    assert len(set(tags)) == 2
    for coding, tag in zip(("identity", "gzip"), tags, strict=True):
        for known in (tag, f'"x", W/{tag}', "*"):
            same = client.get(path, headers={"Accept-Encoding": coding, "If-None-Match": known})
            assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
            assert same.headers["x-content-type-options"] == "nosniff"
        assert client.get(path, headers={"Accept-Encoding": coding, "If-None-Match": '"other"'}).status_code == 200
    assert "no-cache" in plain[0].headers["cache-control"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.1"}, 200),
        ({"X-Request-Id": "mine"}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Host": "[::1"}, 421),
        ({"Origin": "http://[::1"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Authorization": "Bearer wrong"}, 401),
    ],
)
def test_answers_from_memory_have_the_headers_of_all_answers(
    client: httpx.Client, placed: str, headers: dict[str, str], status: int
) -> None:
    """Those of security, the id of the request and, behind a proxy with TLS, HSTS; who is refused stays refused."""
    path = f"/v1/placements/{placed}"
    client.get(path)
    short, long = (client.get(one, headers=headers) for one in (path, f"{path}?long"))
    assert short.status_code == long.status_code == status

    def told(answer: httpx.Response) -> dict[str, str]:
        known = {"date": "", "x-request-id": ""} if "X-Request-Id" not in headers else {"date": ""}
        return {**answer.headers, **known}

    assert told(short) == told(long)
    assert ("strict-transport-security" in short.headers) == ("X-Forwarded-Proto" in headers)
    assert short.headers["x-request-id"]


def test_a_placement_that_was_deleted_is_gone_at_once(client: httpx.Client, name: str) -> None:
    """Its file and router are in memory, and are not answered from there."""
    path = f"/v1/placements/{name}"
    for _ in range(2):
        assert client.get(path).status_code == 200
        assert client.post(f"{path}/route", json={"counts": COUNTS}).status_code == 200
    assert client.delete(path).status_code == 204
    problem_of(client.get(path), 404)
    problem_of(client.post(f"{path}/route", json={"counts": COUNTS}), 404)


def test_what_another_host_deletes_is_gone_within_a_second(client: httpx.Client, server: Server, name: str) -> None:
    """The row is deleted behind the server's back, while it is read all the time."""
    path = f"/v1/placements/{name}"
    assert client.get(path).status_code == 200
    with sqlite3.connect(server.data / "store.sqlite", timeout=30) as database:
        database.execute("DELETE FROM jobs WHERE id = ?", (name,))
    database.close()
    deleted = time.monotonic()
    while client.get(path).status_code == 200:
        assert time.monotonic() < deleted + 1.5
    problem_of(client.get(path), 404)


def test_route_answers_the_same_from_memory_and_refuses_the_same(client: httpx.Client, name: str) -> None:
    """A query string that means nothing takes the long way: answers and errors are equal byte for byte."""
    path = f"/v1/placements/{name}/route"
    bodies: list[Any] = [
        {"counts": COUNTS},
        {"counts": COUNTS, "load": [0, 10.5]},
        {"counts": COUNTS, "load": [0]},
        {},
        {"prompt": [1, 2, 3], "labels": {"domain": "code"}, "session": {"node": 1, "tokens": 10}},
        {"prompt": [-1]},
        {"prompt": ["text"]},
        {"session": {"node": 9, "tokens": 10}},
        {"counts": COUNTS[:1]},
        {"counts": [[1.0], [2.0, 3.0]]},
        {"counts": [["1"] * 8] * 2},
        {"counts": [[-1] * 8] * 2},
        {"counts": COUNTS, "more": 1},
        [],
        "{",
        '{"counts": [[NaN,1,1,1,1,1,1,1],[1,1,1,1,1,1,1,1]]}',
    ]
    for body in bodies:
        content = body if isinstance(body, str) else json.dumps(body)
        short, long = (
            client.post(one, content=content, headers={"Content-Type": "application/json"})
            for one in (path, f"{path}?long")
        )
        assert (short.status_code, short.content) == (long.status_code, long.content)
        assert short.headers["content-type"] == long.headers["content-type"]
    pieces = iter([b'{"counts"', b":", json.dumps(COUNTS).encode(), b"}"])
    answer = client.post(path, content=pieces, headers={"Content-Type": "application/json"})
    assert answer.content == client.post(path, json={"counts": COUNTS}).content
    long_body = json.dumps({"counts": COUNTS}) + " " * (1 << 21)
    answer = client.post(path, content=long_body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    assert client.post(path, content=json.dumps({"counts": COUNTS}), headers={"Content-Type": "text/plain"}).is_error


def test_a_head_without_end_is_cut_off(server: Server) -> None:
    """Neither headers, one header nor the trailers of a body fill the memory; a chunked body is no head."""
    line = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    chunked = b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    for start, more in ((line, b"a: b\r\n"), (line + b"a: ", b"b"), (chunked + b"0\r\n", b"a: b\r\n")):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(start)
            with pytest.raises(OSError):
                for _ in range(200):
                    connection.sendall(more * 10_000)
                    time.sleep(0.001)
    small = (b"1\r\na\r\n" for _ in range(30_000))
    headers = {"Transfer-Encoding": "chunked", "Content-Type": "application/x-www-form-urlencoded"}
    assert httpx.post(f"{server.url}/login", content=small, headers=headers, timeout=30).status_code != 400


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), max_size=40))
def test_memory_keeps_what_was_asked_for_last(asked: list[tuple[int, int]]) -> None:
    """Against a list in order of use: never more than there is room for, and nothing goes that need not."""
    memory: Memory[int] = Memory(8)
    order: list[tuple[int, int]] = []
    for key, size in asked:
        held = memory.get(key)
        known = [entry for entry in order if entry[0] == key]
        assert held == (known[0][1] if known else None)
        order = [entry for entry in order if entry[0] != key]
        if known:
            order.append(known[0])
        else:
            memory.put(key, size, size)
            order.append((key, size))
            while sum(one for _, one in order) > 8:
                order.pop(0)
        assert memory.used == sum(one for _, one in order)
    memory.put("large", 0, 9)
    assert memory.get("large") is None


def test_many_who_ask_at_once_cause_one_reading() -> None:
    """All get its answer or its error; after forget, what is under way is not kept and who asks then reads anew."""

    async def check() -> None:
        once, kept, begun = Once(), [], []

        def read() -> int:
            begun.append(1)
            time.sleep(0.05)
            return len(begun)

        assert await asyncio.gather(*(once.read("a", read, kept.append) for _ in range(9))) == [1] * 9
        assert (begun, kept) == ([1], [1])
        first = asyncio.ensure_future(once.read("a", read, kept.append))
        await asyncio.sleep(0.01)
        once.forget("a")
        assert await once.read("a", read, kept.append) == 3
        assert await first in (2, 3)
        assert kept == [1, 3]

        def fail() -> int:
            raise ValueError

        told = await asyncio.gather(*(once.read("b", fail, kept.append) for _ in range(3)), return_exceptions=True)
        assert {type(one) for one in told} == {ValueError}

    asyncio.run(check())


def test_what_is_fresh_is_read_again_before_it_is_doubted() -> None:
    """A value in use never makes anyone wait, is never older than promised, and None is not kept."""

    async def check() -> None:
        fresh: Fresh[float] = Fresh(10, 0.8)
        end, waited, reads = time.monotonic() + 2.4, 0, 0

        def read() -> float:
            nonlocal reads
            reads += 1
            return time.monotonic()

        while (asked := time.monotonic()) < end:
            if (known := fresh.known("a", read)) is None:
                waited += 1
                known = await fresh.get("a", read)
            assert known is not None
            assert asked - known < 0.8
            await asyncio.sleep(0.005)
        assert waited == 1
        assert 4 <= reads <= 11
        assert await fresh.get("none", lambda: None) is None
        assert fresh.known("none", lambda: None) is None

    asyncio.run(check())


def test_a_deleted_token_opens_nothing_a_second_later(
    make_server: Any, tmp_path: Path, run_cli: Any, trace_id: str
) -> None:
    """Also where it is used all the time and so remembered."""
    data = ("--data", tmp_path / "data")
    token, _ = (run_cli("token", "create", name, *data).stdout.strip() for name in ("one", "two"))
    with make_server(tmp_path / "data").client(token) as client:
        assert client.get("/v1/jobs").status_code == 200
        assert run_cli("token", "delete", "one", *data).code == 0
        deleted = time.monotonic()
        while client.get("/v1/jobs").status_code == 200:
            assert time.monotonic() < deleted + 1.5
            time.sleep(0.02)
        problem_of(client.get("/v1/jobs"), 401)
