"""What every target of fuzzing is made of."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from placement.errors import PlacementError

TESTS = Path(__file__).parent.parent
SHARED_MEMORY = Path("/dev/shm")
LONGEST_MESSAGE = 6000
COUNTED_EXPERTS = 512  # a workload has [L, E, E] numbers whatever the trace holds

Seeds = Mapping[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`kind` says which structure mutations keep; `seeds()` are sound files by name, small."""

    run: Callable[[bytes], None]
    seeds: Callable[[], Seeds]
    kind: str


refusals: list[str] = []  # of the last run; sound input has none


@contextmanager
def refusing() -> Iterator[None]:
    """What is allowed of bad input: an error of the tree, one line of a length that can be read."""
    refusals.clear()
    try:
        yield
    except PlacementError as error:
        text = str(error)
        refusals.append(text)
        if "\n" in text or not 20 < len(text) <= LONGEST_MESSAGE:
            raise AssertionError(f"a message of {len(text)} characters: {text[:200]!r}") from error


@contextmanager
def folder() -> Iterator[Path]:
    """A folder in memory where the system has one."""
    path = Path(tempfile.mkdtemp(prefix="fuzz-", dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
