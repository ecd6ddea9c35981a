"""Where the tasks of a command run: threads of this process, or workers of a Ray cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Annotated

import typer

from placement.errors import OptionError

RAY = "ray"

Workers = Annotated[
    str | None,
    typer.Option(
        metavar="N|ray|HOST:PORT",
        help="Threads; or the Ray cluster of this machine or of an address, as 8@ray with the tasks at once. The "
        "answer is the same. [default: the cores]",
        rich_help_panel="Running and output",
    ),
]


@contextmanager
def open_executor(workers: str | None) -> Iterator[tuple[Executor | None, int | None]]:
    """(executor of other machines, None for threads; number of threads)."""
    number, address = parse_workers(workers)
    if address is None:
        yield None, number
        return
    from placement.support.ray_executor import RayExecutor  # Ray is loaded only where asked for

    with RayExecutor("auto" if address == RAY else address, workers=number) as executor:
        yield executor, None


def parse_workers(text: str | None) -> tuple[int | None, str | None]:
    """(workers, address of a Ray cluster), None where not said. Raises OptionError."""
    if text is None:
        return None, None
    found = re.fullmatch(r"(?:(\d{1,6})@)?(ray|[\w.-]+:\d+)|(\d{1,6})", text)
    number = None if found is None or not (found[1] or found[3]) else int(found[1] or found[3])
    if found is None or number == 0:
        raise OptionError(
            f"workers={text!r} names no workers; give a number of threads from 1 to 999999, ray, HOST:PORT of a Ray "
            f"cluster, or both as 8@ray"
        )
    return number, found[2]
