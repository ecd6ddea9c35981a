"""Captures on the command line: several TRACES, counted folders and files of counts, each perhaps with a weight."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from placement.cli.shared import open_any

if TYPE_CHECKING:
    from placement.pipeline.captures import Captures
    from placement.traces.trace import Trace
    from placement.workload.counted import CountedTrace
    from placement.workload.counts_file import ExpertCounts

CaptureArguments = Annotated[
    list[str],
    typer.Argument(
        metavar="TRACES...",
        help="Folders (or globs, or folders of folders) of expert-trace/1, or counts. Several are captures that weigh "
        "alike; day=30 night=70 weighs them.",
    ),
]


def open_captures(paths: list[str], top_k: int | None) -> Trace | ExpertCounts | CountedTrace | Captures:
    """One capture as it is, or several, see `placement.pipeline.captures.together`; what to say goes to stderr."""
    from placement.pipeline.captures import together
    from placement.workload.counts_file import is_counts_file

    pairs = [weighed(path) for path in paths]
    if top_k is not None and not any(is_counts_file(path) for path, _ in pairs):
        return open_any([path for path, _ in pairs], top_k)  # which refuses
    given, said = together(
        [
            (Path(os.path.realpath(path)), open_any([path], top_k if is_counts_file(path) else None), weight)
            for path, weight in pairs
        ]
    )
    if said is not None:
        print(said, file=sys.stderr)
    return given


def weighed(path: str) -> tuple[str, float | None]:
    """The path and the weight of an argument such as `night=0.7`; a URL, and what exists as written, is a path."""
    from placement.traces.storage.stored_path import is_url

    found = re.fullmatch(r"(.+)=(\d{1,9}(?:\.\d{1,9})?)", path, re.ASCII)
    if found is None or is_url(path) or Path(path).exists():
        return path, None
    return found[1], float(found[2])
