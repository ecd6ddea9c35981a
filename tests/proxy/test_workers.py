"""The scorer as a library call: a router of one's own, such as Dynamo's, asks for the worker of a prompt's home."""

from __future__ import annotations

import logging
import shutil
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from placement_api.proxy.tokens import Tokens
from placement_api.proxy.workers import Workers
from route_front import WORDS, Sample

from placement.errors import InputError, OptionError

PAIRS = [(7000 + rank // 2, rank % 2) for rank in range(8)]  # (worker id of Dynamo, data-parallel rank)


@pytest.fixture
def workers(sample: Sample) -> Workers[tuple[int, int]]:
    return Workers(sample.map_file, sample.grouping, PAIRS)


def ids(sample: Sample, word: str) -> list[int]:
    return [int(one) for one in Tokens(sample.tokenizer).ids(word)]


@pytest.mark.parametrize("node", range(4))
def test_a_prompt_runs_on_a_worker_of_its_home(workers: Workers[Any], sample: Sample, node: int) -> None:
    """On the rank of the node that has less in flight, while the other runs; afterwards nothing is in flight."""
    prompt = ids(sample, WORDS[node])
    with workers.home(prompt) as first, workers.home(prompt, new_tokens=5) as second:
        assert {first, second} == set(PAIRS[2 * node : 2 * node + 2])
        assert workers.load()[node] > 0
    assert workers.load() == [0.0] * 4


def test_a_router_of_dynamo_tells_the_worker(workers: Workers[Any], sample: Sample) -> None:
    """As docs/routing.md has it: a handler of `dynamo.router` writes the hints that Dynamo's request knows."""
    import asyncio

    class KvRouter:
        async def generate_from_request(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
            async def outputs() -> AsyncIterator[dict[str, Any]]:
                assert workers.load()[3] > 0
                yield request["routing"]

            return outputs()

    async def generate(request: dict[str, Any]) -> list[dict[str, Any]]:
        with workers.home(request["token_ids"]) as (instance, rank):
            asked = request | {"routing": {"backend_instance_id": instance, "dp_rank": rank}}
            return [output async for output in await KvRouter().generate_from_request(asked)]

    told = asyncio.run(generate({"token_ids": ids(sample, WORDS[3])}))
    assert told == [{"backend_instance_id": 7003, "dp_rank": 0}]
    assert workers.load() == [0.0] * 4


def test_a_session_stays_and_labels_are_taken(workers: Workers[Any], sample: Sample) -> None:
    """What is worth more than a home here: a prefix of a thousand tokens."""
    with workers.home(ids(sample, WORDS[1]) * 1000, session="chat"):
        pass
    with workers.home(ids(sample, WORDS[2]) * 1000, session="chat", labels={"domain": "code"}) as worker:
        assert worker in PAIRS[2:4]


@pytest.mark.parametrize("prompt", [[-1], ["secret words"], [[1], [2, 3]], None, 5])
def test_what_is_no_prompt_goes_somewhere_and_is_not_logged(
    workers: Workers[Any], prompt: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), workers.home(prompt) as worker:
        assert worker in PAIRS
    assert workers.load() == [0.0] * 4
    assert "secret" not in caplog.text


def test_threads_share_it(workers: Workers[Any], sample: Sample) -> None:
    prompts = [ids(sample, word) for word in WORDS]

    def ask(number: int) -> None:
        with workers.home(prompts[number % 4], session=f"{number % 7}"):
            pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(400)))
    assert workers.load() == [0.0] * 4


def test_files_are_taken_anew_where_they_are_sound(sample: Sample, tmp_path: Path) -> None:
    grouping = tmp_path / "grouping.json"
    shutil.copy(sample.grouping, grouping)
    workers = Workers(sample.map_file, grouping, PAIRS)
    assert not workers.refresh()
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "broken.json").replace(grouping)
    assert not workers.refresh()
    with workers.home(ids(sample, WORDS[2])) as worker:
        assert worker in PAIRS[4:6]
    shutil.copy(sample.grouping, tmp_path / "new.json")
    (tmp_path / "new.json").replace(grouping)
    assert workers.refresh()


def test_workers_have_to_fit_the_map(sample: Sample, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="3"):
        Workers(sample.map_file, sample.grouping, [1, 2, 3])
    with pytest.raises(InputError, match="grouping"):
        Workers(sample.map_file, tmp_path / "grouping.json", PAIRS)
