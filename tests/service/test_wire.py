"""HTTP as it is written: one answer for each request, whole and in its place, and no head without a bound."""

from __future__ import annotations

import time

import pytest
from behind import Behind
from placement_api.wire import MOST_HEAD_BYTES


class Quick:
    """Answers `/quick` at once with the body that came, unless that is `no`."""

    def ask(self, method: bytes, url: bytes, headers: list[tuple[bytes, bytes]], client: str) -> bytes | None:
        assert client == "127.0.0.1"
        return url if url == b"/quick" else None

    def answer(self, asked: bytes, body: bytes, date: bytes) -> bytes | None:
        assert asked == b"/quick"
        if body == b"no":
            return None
        head = b"HTTP/1.1 200 OK\r\n%scontent-length: %d\r\n\r\n" % (date, len(body) + 1)
        return head + b"!" + body


def _post(path: str, body: str) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def test_what_is_answered_at_once_keeps_its_place_and_its_body() -> None:
    """Behind a request that takes longer it waits for that one's answer; in pieces, or where it is not known after
    all, the application has the whole of it; the connection goes on."""
    with Behind(10, 60, Quick()) as behind, behind.connect() as opened:
        answers = opened.makefile("rb")

        def answer() -> bytes:
            head = iter(answers.readline, b"\r\n")
            lengths = [line.split()[1] for line in head if line.lower().startswith(b"content-length")]
            return answers.read(int(lengths[0]))

        opened.sendall(_post("/quick", "one") + _post("/quick", "two"))
        assert [answer(), answer()] == [b"!one", b"!two"]
        opened.sendall(_post("/quick", "no") + _post("/quick", "three"))
        assert [answer(), answer()] == [b"no", b"three"]  # the second came while the first was answered
        whole = _post("/quick", "in pieces")
        opened.sendall(whole[:-3])
        time.sleep(0.1)
        opened.sendall(whole[-3:])
        assert answer() == b"in pieces"
        opened.sendall(_post("/slow", "") + _post("/quick", "last"))
        assert behind.slow.acquire(timeout=5)
        behind.go.set()
        assert [answer(), answer()] == [b"", b"last"]
        opened.sendall(_post("/quick", "again"))
        assert answer() == b"!again"
        opened.sendall(b"POST /quick HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx")
        assert answer() == b"x" and answers.read() == b""


def answers_to(behind: Behind, *parts: bytes) -> bytes:
    """All that comes until the other side hangs up; the parts are sent one by one."""
    with behind.connect() as opened:
        for part in parts:
            opened.sendall(part)
            time.sleep(0.05)
        opened.settimeout(5)
        came = b""
        while part := opened.recv(1 << 16):
            came += part
    return came


def _pieces(sent: bytes, size: int) -> list[bytes]:
    return [sent[start : start + size] for start in range(0, len(sent), size)]


@pytest.mark.parametrize("size", [MOST_HEAD_BYTES, 1 << 17, 9_000])
def test_a_head_of_70_kb_is_refused_however_it_comes(size: int) -> None:
    """In one piece or in several; one of nearly 64 KiB is taken, a second one on the same connection too."""
    with Behind(10, 60) as behind:
        head = b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: %s\r\n\r\n"
        came = answers_to(behind, *_pieces(head % (b"x" * 70_000), size))
        assert came.startswith(b"HTTP/1.1 400 ") and b"longer than 65536 bytes" in came
        assert came.count(b"HTTP/1.1 ") == 1
        last = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        near = head % (b"x" * 60_000)
        came = answers_to(behind, *_pieces(near + near + last, size))
        assert came.count(b"HTTP/1.1 200 ") == 3


@pytest.mark.parametrize(
    "sent",
    [
        b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\nhello",
    ],
)
def test_a_body_whose_end_is_in_doubt_ends_the_connection(sent: bytes) -> None:
    """Read whole or refused: what follows is never taken for a request that another sent (RFC 9112, 6.1 and 6.3)."""
    with Behind(10, 60) as behind:
        came = answers_to(behind, sent + b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
        assert came.count(b"HTTP/1.1 ") <= 1
        assert came.endswith(b"hello") or came.startswith(b"HTTP/1.1 400 ")


def test_what_is_no_request_gets_no_answer_amid_another() -> None:
    """Where an answer is on its way it is cut off; where none has begun, 400 is the only one."""
    with Behind(10, 60) as behind, behind.connect() as opened:
        opened.sendall(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
        answers = opened.makefile("rb")
        assert answers.readline().startswith(b"HTTP/1.1 200")
        opened.sendall(b"no HTTP at all\r\n\r\n")
        assert b"HTTP/1.1" not in answers.read()
    with Behind(10, 60) as behind:
        came = answers_to(behind, b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n", b"no HTTP at all\r\n\r\n")
        assert came.startswith(b"HTTP/1.1 400 ") and came.count(b"HTTP/1.1 ") == 1
