"""A map and a grouping whose router sends a word to a node, a tokenizer of these words, and the proxy in front."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path += [str(Path(__file__).parent)]

from fake_engine import FakeEngine, plain
from route_front import WORDS, Front, Sample, arguments

from placement import Cluster, Options, open_trace
from placement.documents.placement import save_placement
from placement.grouping.features import gram_counts
from placement.grouping.predictor import Predictor
from placement.grouping.prices import Prices
from placement.grouping.router_part import RouterPart
from placement.pipeline.documents.grouping_document import grouping_file
from placement.pipeline.solution import solution_document
from placement.pipeline.with_homes import solve_grouped

NODES, BUCKETS = 4, 1 << 16


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory, write_trace: Callable[..., Any]) -> Sample:
    folder = tmp_path_factory.mktemp("route")
    trace = write_trace(folder / "trace", tokens=240, requests=12, num_experts=16, spread=1.5)
    cluster = Cluster(num_nodes=NODES, gpus_per_node=2, slots_per_gpu=2)
    options = Options(work_limit=300, bound="none")
    grouped = solve_grouped(open_trace(trace.folder), cluster, options, home_from="0.25", tolerance=0.5)
    one = Sample(
        map_file=folder / "placement.json", grouping=folder / "grouping.json", tokenizer=folder / "tokenizer.json"
    )
    save_placement(one.map_file, solution_document(grouped.solution))
    word_ids = write_tokenizer(one.tokenizer)
    router = replace(grouped.homes.router, predictor=planted(word_ids), prices=even_prices(), prefix_sends=1.0)
    document = grouping_file(grouped)
    document.model_copy(update={"router": RouterPart.of(router, keeps=1.0)}).write(one.grouping)
    return one


def even_prices() -> Prices:
    """Load has no price, and no node is ever too far ahead."""
    return Prices(score_SN=np.zeros((1, NODES), np.float32), request_tokens=100.0, horizon=8.0, ahead_tokens=1e9)


def planted(word_ids: list[int]) -> Predictor:
    """A word saves a send at its node."""
    weight_NF = np.zeros((NODES, BUCKETS), np.float16)
    for node, word in enumerate(word_ids):
        column, _, _ = next(gram_counts(np.array([word]), BUCKETS))
        weight_NF[node, column] = 1.0
    return Predictor(
        idf_F=np.ones(BUCKETS, np.float16),
        weight_NF=weight_NF,
        mean_N=np.zeros(NODES),
        worth_tokens=10.0,
        least_worth_tokens=1.0,
    )


def write_tokenizer(path: Path) -> list[int]:
    """A small byte-level BPE, trained here; the ids of the words."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, show_progress=False, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([f"{word} " * 50 for word in WORDS], trainer)
    tokenizer.save(str(path))
    ids = [tokenizer.encode(word).ids for word in WORDS]
    assert all(len(one) == 1 for one in ids)
    return [one[0] for one in ids]


@pytest.fixture(scope="session")
def engine_for_all() -> Iterator[FakeEngine]:
    engine = FakeEngine()
    yield engine
    engine.stop()


@pytest.fixture
def engine(engine_for_all: FakeEngine) -> FakeEngine:
    """A fake engine that has seen nothing."""
    engine_for_all.seen.clear()
    engine_for_all.answer = plain
    return engine_for_all


@pytest.fixture(scope="session")
def fronts() -> Iterator[Callable[..., Front]]:
    """Starts proxies, one for the same arguments, and ends them."""
    pytest.importorskip("httptools")
    started: dict[tuple[str, ...], Front] = {}

    def front(*arguments: str, shared: bool = True) -> Front:
        if not shared or arguments not in started:
            one = Front(arguments=arguments).start()
            started[(*arguments, *(() if shared else (str(len(started)),)))] = one
            return one
        return started[arguments]

    yield front
    for one in started.values():
        if one.process is not None and one.process.poll() is None:
            one.stop()


@pytest.fixture
def front(fronts: Callable[..., Front], sample: Sample, engine: FakeEngine) -> Front:
    """A proxy in front of the fake engine, taken for vLLM."""
    return fronts(*arguments(sample, engine.url, "--engine", "vllm"))
