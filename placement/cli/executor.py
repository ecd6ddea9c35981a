"""Where the tasks of a command run: threads of this process, or workers of a Ray cluster."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Annotated

import typer

from placement.errors import OptionError

THREADS, RAY = "threads", "ray"
ENGINES = (THREADS, RAY)

Engine = Annotated[str, typer.Option(help=f"Where tasks run: {', '.join(ENGINES)} (many machines).")]
Address = Annotated[
    str | None,
    typer.Option(help="HOST:PORT of the Ray cluster. [default: the one that runs on this machine]"),
]


def open_engine(engine: str, address: str | None, workers: int | None) -> Executor | None:
    """The executor of other machines, to be used in a `with`; None: threads do."""
    if engine not in ENGINES:
        raise OptionError(f"engine={engine!r} is unknown; choose one of {', '.join(ENGINES)}")
    if engine == THREADS:
        if address is not None:
            raise OptionError(f"--address {address} is that of a Ray cluster; add --engine {RAY}")
        return None
    from placement.support.ray_executor import RayExecutor  # Ray is loaded only for it

    return RayExecutor(address or "auto", workers=workers)
