"""No file, body or archive, however broken, gives more than a refusal in words: soon, in little memory."""

from __future__ import annotations

import os
import random
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))

from fuzz_base import Target, refusals
from fuzz_bombs import bombs, everywhere
from fuzz_mutations import mutated
from fuzz_targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
LONGEST_S = 30
MOST_MIB = 512
MOST_KEPT_BYTES = 1 << 20
EXAMPLES = 60
STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@pytest.fixture(scope="module", params=sorted(TARGETS))
def named(request: pytest.FixtureRequest) -> tuple[str, Target, list[bytes]]:
    """A target with its seeds, which were run once: compiling and importing are over."""
    target = TARGETS[request.param]()
    seeds = list(target.seeds().values())
    for seed in seeds:
        target.run(seed)
    return request.param, target, seeds


def kept(name: str) -> list[Path]:
    folder = CORPUS / name
    return sorted(folder.iterdir()) if folder.is_dir() else []


def peak_mib() -> int:
    """The most memory of this process since `REFERENCES` was written to; 0 where the system does not say."""
    if not STATUS.exists():
        return 0
    line = next(one for one in STATUS.read_text().splitlines() if one.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


@contextmanager
def bounded() -> Iterator[None]:
    """Ends a run that takes too long, and fails one that took too much memory."""

    def end(*_: Any) -> None:
        raise TimeoutError(f"took longer than {LONGEST_S} s")

    if os.access(REFERENCES, os.W_OK):
        REFERENCES.write_text("5")
    before = peak_mib()
    old = signal.signal(signal.SIGALRM, end)
    signal.alarm(LONGEST_S)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.simplefilter("error", RuntimeWarning)
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    assert peak_mib() - before <= MOST_MIB


def test_sound_files_are_taken(named: tuple[str, Target, list[bytes]]) -> None:
    """Seeds are read without a refusal: else all that is fuzzed from them would stop at the first check."""
    name, target, seeds = named
    for seed in seeds:
        refusals.clear()
        target.run(seed)
        assert refusals == [], name


def test_what_was_found_stays_mended(named: tuple[str, Target, list[bytes]]) -> None:
    """Every input of the corpus, the ones that crashed among them, and bombs that a fuzzer seldom finds."""
    name, target, _ = named
    found = {path.name: path.read_bytes() for path in kept(name)}
    for what, data in {**everywhere(), **bombs().get(name, {}), **found}.items():
        try:
            with bounded():
                target.run(data)
        except Exception as error:
            raise AssertionError(f"{name}: {what}") from error


def test_changed_files(named: tuple[str, Target, list[bytes]]) -> None:
    """Files that keep their structure, with values, headers and members changed; the same ones every time."""
    name, target, seeds = named
    rng = random.Random(name)
    for number in range(EXAMPLES):
        data = mutated(rng.choice(seeds), target.kind, rng)
        try:
            with bounded():
                target.run(data)
        except Exception as error:
            raise AssertionError(f"{name}: change {number}: {data[:300]!r}") from error


def test_the_corpus_is_small_and_belongs_to_targets() -> None:
    """A folder of a target that was renamed would no longer be replayed."""
    folders = {path.name for path in CORPUS.iterdir()}
    assert folders <= set(TARGETS)
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < MOST_KEPT_BYTES
