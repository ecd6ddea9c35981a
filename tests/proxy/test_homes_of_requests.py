"""Whatever form a prompt comes in, the request goes home, and the engine gets what the client sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fake_engine import FakeEngine
from route_front import WORDS, Front, Sample, arguments

RANKS_A_NODE = 2


def home(engine: FakeEngine) -> int:
    return int(engine.last().header("x-data-parallel-rank") or -1) // RANKS_A_NODE


@pytest.mark.parametrize("node", range(4))
def test_a_chat_goes_home(front: Front, engine: FakeEngine, node: int) -> None:
    answer = front.chat(f"{WORDS[node]} {WORDS[node]}")
    assert (answer.status_code, answer.content, answer.headers["server"]) == (200, b'{"object": "answer"}', "fake")
    assert home(engine) == node


FORMS: dict[str, tuple[str, Callable[[str], dict[str, Any]]]] = {
    "several turns": (
        "/v1/chat/completions",
        lambda word: {"messages": [{"role": "system", "content": word}, {"role": "user", "content": word}]},
    ),
    "parts with a picture": (
        "/v1/chat/completions",
        lambda word: {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                        {"type": "text", "text": word},
                    ],
                }
            ]
        },
    ),
    "tools": (
        "/v1/chat/completions",
        lambda word: {
            "messages": [
                {"role": "user", "content": word},
                {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f"}}]},
                {"role": "tool", "tool_call_id": "1", "content": word},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        },
    ),
    "several answers": ("/v1/completions", lambda word: {"prompt": word, "n": 3, "max_tokens": 5}),
    "text": ("/v1/completions", lambda word: {"prompt": word}),
    "texts": ("/v1/completions", lambda word: {"prompt": [word, word]}),
    "responses": ("/v1/responses", lambda word: {"input": word, "instructions": word}),
    "items": (
        "/v1/responses",
        lambda word: {"input": [{"role": "user", "content": [{"type": "input_text", "text": word}]}]},
    ),
    "native": ("/generate", lambda word: {"text": word, "sampling_params": {"max_new_tokens": 3}}),
    "messages": (
        "/v1/messages",
        lambda word: {"system": [{"type": "text", "text": word}], "messages": [{"role": "user", "content": word}]},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_prompt_is_read(front: Front, engine: FakeEngine, form: str) -> None:
    path, of = FORMS[form]
    for node in (2, 1):
        assert front.client.post(path, json=of(f"{WORDS[node]} {WORDS[node]}")).status_code == 200
        assert home(engine) == node, form
        assert engine.last().json == of(f"{WORDS[node]} {WORDS[node]}")


@pytest.mark.parametrize("key", ["prompt", "input_ids"])
@pytest.mark.parametrize("nested", [False, True])
def test_prompts_of_ids_need_no_tokenizer(
    front: Front, engine: FakeEngine, sample: Sample, key: str, nested: bool
) -> None:
    from placement_api.proxy.tokens import Tokens

    ids = Tokens(sample.tokenizer).ids(WORDS[3]).tolist()
    path = "/v1/completions" if key == "prompt" else "/generate"
    assert front.client.post(path, json={key: [ids, ids] if nested else ids}).status_code == 200
    assert home(engine) == 3


def test_a_conversation_stays_where_it_began(front: Front, engine: FakeEngine) -> None:
    """Its later turns speak of another node's word, but its keys and values are where it began."""
    headers = {"X-Session-ID": "one"}
    front.client.post("/v1/completions", json={"prompt": f"{WORDS[1]} " * 200}, headers=headers)
    front.client.post("/v1/completions", json={"prompt": f"{WORDS[2]} " * 200}, headers=headers)
    assert home(engine) == 1
    front.client.post("/v1/completions", json={"prompt": f"{WORDS[2]} " * 200})
    assert home(engine) == 2


def test_a_conversation_is_known_by_its_first_messages(front: Front, engine: FakeEngine) -> None:
    first = [{"role": "user", "content": f"{WORDS[0]} " * 150}]
    front.client.post("/v1/chat/completions", json={"messages": first})
    turns = [*first, {"role": "assistant", "content": "yes"}, {"role": "user", "content": f"{WORDS[3]} " * 160}]
    front.client.post("/v1/chat/completions", json={"messages": turns})
    assert home(engine) == 0


def test_an_unknown_prompt_goes_to_the_least_loaded(front: Front, engine: FakeEngine) -> None:
    """Nothing is in flight: the first of equal nodes."""
    assert front.client.post("/v1/completions", json={"model": "m"}).status_code == 200
    assert home(engine) == 0
    assert front.series()['placement_route_homes_total{node="0",why="load"}'] >= 1


def test_several_backends_are_chosen_by_node(fronts: Callable[..., Front], sample: Sample) -> None:
    """One for each node: no rank is told; one for each rank: those of the node, the least loaded."""
    engines = [FakeEngine() for _ in range(8)]
    try:
        for count, expected in ((4, [2]), (8, [4])):
            front = fronts(*arguments(sample, *(one.url for one in engines[:count])), shared=False)
            front.chat(f"{WORDS[2]} {WORDS[2]}")
            asked = [at for at, one in enumerate(engines) if one.seen]
            assert asked == expected
            assert engines[asked[0]].last().header("x-data-parallel-rank") is None
            for one in engines:
                one.seen.clear()
            front.stop()
    finally:
        for one in engines:
            one.stop()
