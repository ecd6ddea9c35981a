"""What a job is given, and what it answers: it runs in a process of its own, which alone loads what computes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A job with everything that it reads resolved to paths.

    kind       one of `ANSWERS`
    request    the body of the request
    traces     where its traces lie; top_k is theirs
    data, blobs  where the store is, as of `Settings`
    placement  file of the current map (solve) or of the one to measure (evaluate)
    """

    kind: str
    request: dict[str, Any]
    traces: list[str]
    top_k: int
    data: str
    blobs: str
    workers: int
    placement: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Digests of the files that were written, by name, and figures for lists."""

    files: dict[str, str]
    summary: dict[str, Any] = field(default_factory=dict)
