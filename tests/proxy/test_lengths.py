"""How long answers are is read from what engines say, and expected of the next requests that are alike."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from fake_engine import Answer, FakeEngine, plain, stream
from hypothesis import given
from hypothesis import strategies as st
from placement_api.proxy.asked import Asked
from placement_api.proxy.lengths import MEMORY, MOST_KINDS, TAIL_BYTES, Lengths, Usage
from route_front import WORDS, Front

ASKED = Asked(text="", ids=[], new_tokens=None, answers=1, session=None, shared=0.0, labels={})
CHAT = {"prompt_tokens": 7, "completion_tokens": 41, "completion_tokens_details": {"reasoning_tokens": 9}}


def events(*contents: object) -> bytes:
    return b"".join(b"data: %s\n\n" % json.dumps(one).encode() for one in contents) + b"data: [DONE]\n\n"


BODIES = {
    "a chat": (json.dumps({"choices": [{"message": "x" * 9000}], "usage": CHAT, "prompt_logprobs": None}).encode(), 41),
    "a last chunk": (events({"choices": ["a"]}, {"choices": [], "usage": CHAT}), 41),
    "in every chunk": (events(*({"usage": {"completion_tokens": at}} for at in range(1, 8))), 7),
    "SGLang's own form": (
        json.dumps({"text": "a", "meta_info": {"completion_tokens": 3, "e2e_latency": 1.5}}).encode(),
        3,
    ),
    "Responses": (events({"type": "response.completed", "response": {"usage": {"output_tokens": 12}}}), 12),
    "Messages": (events({"type": "message_delta", "usage": {"output_tokens": 15}}, {"type": "message_stop"}), 15),
    "no usage": (events({"choices": ["a"], "usage": None}), None),
    "said by a model": (json.dumps({"text": '{"completion_tokens": 99}'}).encode(), None),
    "a fraction": (b'{"completion_tokens": 1.5}', None),
    "nothing": (b"", None),
}


@pytest.mark.parametrize("what", BODIES)
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_the_length_is_read_however_the_answer_is_cut(what: str, size: int) -> None:
    body, tokens = BODIES[what]
    usage = Usage()
    for begin in range(0, len(body), size):
        usage.see(body[begin : begin + size])
    assert usage.tokens() == tokens


@given(body=st.binary(max_size=200))
def test_any_bytes_are_looked_at(body: bytes) -> None:
    usage = Usage()
    usage.see(body)
    assert usage.tokens() is None or usage.tokens() >= 0


def test_no_more_than_the_end_of_an_answer_is_kept() -> None:
    usage = Usage()
    for _ in range(20):
        usage.see(b"x" * 1000)
        usage.see(b"x" * 9000)
    assert len(usage._tail) == TAIL_BYTES


def test_what_was_seen_is_expected_and_never_more_than_allowed() -> None:
    lengths = Lengths()
    assert lengths.expected(ASKED, 500.0) == 500.0
    for _ in range(200):
        lengths.learn(ASKED, 60)
    assert lengths.expected(ASKED, 500.0) == pytest.approx(60, rel=0.05)
    assert lengths.expected(replace(ASKED, new_tokens=20), 500.0) == 20


def test_answers_of_one_request_share_its_tokens() -> None:
    lengths = Lengths()
    for _ in range(200):
        lengths.learn(replace(ASKED, answers=4), 400)
    assert lengths.expected(ASKED, 100.0) == pytest.approx(100)


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (replace(ASKED, new_tokens=16), replace(ASKED, new_tokens=4000)),
        (replace(ASKED, labels={"domain": "chat"}), replace(ASKED, labels={"domain": "code"})),
        (replace(ASKED, session="a"), replace(ASKED, session="b")),
    ],
    ids=["limits", "labels", "conversations"],
)
def test_requests_that_differ_are_told_apart(short: Asked, long: Asked) -> None:
    """By the room that they give, by labels, and by conversation; one that is like neither is between."""
    lengths = Lengths()
    for _ in range(300):
        lengths.learn(short, 10)
        lengths.learn(long, 900)
    assert lengths.expected(short, 300.0) < 30
    assert lengths.expected(long, 300.0) > 850
    assert 200 < lengths.expected(replace(ASKED, session="c"), 300.0) < 700


def test_old_answers_fade() -> None:
    lengths = Lengths()
    for _ in range(int(5 * MEMORY)):
        lengths.learn(ASKED, 1000)
    for _ in range(int(5 * MEMORY)):
        lengths.learn(ASKED, 10)
    assert lengths.expected(ASKED, 1000.0) < 50


def test_long_labels_take_no_memory() -> None:
    lengths = Lengths()
    lengths.learn(replace(ASKED, labels={"domain": "x" * 60_000}), 50)
    assert max(len(repr(kind)) for kind in lengths._known) < 200


def test_conversations_do_not_fill_the_memory() -> None:
    """And what is known of all requests outlives them."""
    lengths = Lengths()
    for number in range(MOST_KINDS + 100):
        lengths.learn(replace(ASKED, session=f"{number}"), 50)
    assert len(lengths._known) == MOST_KINDS
    assert lengths.expected(ASKED, 1000.0) < 60


def in_flight(front: Front, engine: FakeEngine) -> float:
    """Tokens in flight at the last node while one more request for it runs."""
    engine.answer = stream([b"data: 1\n\n"], pause_s=0.3)
    with front.client.stream("POST", "/v1/completions", json={"prompt": WORDS[3], "max_tokens": 90}) as answer:
        next(parts := answer.iter_raw())
        load = front.series()['placement_route_tokens_in_flight{node="3"}']
        for _ in parts:
            pass
    return load


@pytest.mark.parametrize("streamed", [False, True])
def test_the_proxy_learns_from_the_engines_answers(front: Front, engine: FakeEngine, streamed: bool) -> None:
    """Whole or in a stream's last chunk; answers of errors, and those that say nothing, teach nothing."""
    body = events({"choices": ["a"]}, {"choices": [], "usage": {"completion_tokens": 3}})

    async def fault(seen, writer) -> None:  # type: ignore[no-untyped-def]
        writer.write(b"HTTP/1.1 400 No\r\nContent-Length: 23\r\n\r\n" + b'{"completion_tokens":88}'[:23])
        await writer.drain()

    def ask(answer: Answer, times: int) -> None:
        engine.answer = answer
        for _ in range(times):
            front.client.post("/v1/completions", json={"prompt": WORDS[3], "max_tokens": 90})

    before = in_flight(front, engine)
    ask(plain, 3)
    ask(fault, 3)
    assert in_flight(front, engine) == before
    told = 'placement_route_lengths_total{told="usage"}'
    seen = front.series().get(told, 0)
    ask(stream([body] if not streamed else [body[:20], body[20:]]), 30)
    assert front.series()[told] == seen + 30
    assert in_flight(front, engine) < (before if streamed else before / 2)
