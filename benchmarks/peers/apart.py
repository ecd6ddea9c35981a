"""Every method runs in a process of its own: a crash or a hang ends that row alone, and its memory is its own."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from placement.solvers.problem import LayerProblem

Place = Callable[[LayerProblem], npt.NDArray[np.integer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Maps of all layers, CPU seconds a layer, peak resident memory above that at the start; or why there is none.

    The machine may do other work, hence CPU seconds. The memory includes the import of the method's package.
    """

    phy2log_LP: npt.NDArray[np.integer] | None = None
    seconds: float = 0.0
    peak_bytes: int = 0
    fault: str | None = None


def answers(methods: Sequence[Place], problems: Sequence[LayerProblem], jobs: int, limit_s: float) -> list[Answer]:
    """One answer a method, `jobs` side by side, each within `limit_s`."""
    fork = multiprocessing.get_context("fork")
    found: dict[int, Answer] = {}
    running: dict[Any, tuple[int, Any, float]] = {}
    waiting = list(enumerate(methods))
    while waiting or running:
        while waiting and len(running) < jobs:
            number, method = waiting.pop(0)
            here, there = fork.Pipe(duplex=False)
            process = fork.Process(target=_child, args=(method, problems, there))
            process.start()
            there.close()
            running[here] = (number, process, time.monotonic() + limit_s)
        for pipe in wait(list(running), timeout=1.0) or []:
            number, process, _ = running.pop(pipe)
            try:
                found[number] = pipe.recv()
            except EOFError:
                found[number] = Answer(fault="crashed")
            process.join()
        for pipe, (number, process, end) in list(running.items()):
            if time.monotonic() > end:
                process.kill()
                process.join()
                found[number] = Answer(fault=f"more than {limit_s:.0f} s")
                del running[pipe]
    return [found[number] for number in range(len(methods))]


def _child(method: Place, problems: Sequence[LayerProblem], pipe: Connection) -> None:
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    try:
        with threadpool_limits(1):
            start = time.process_time()
            rows = np.stack([method(problem) for problem in problems])
            seconds = (time.process_time() - start) / len(problems)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        answer = Answer(phy2log_LP=rows, seconds=seconds, peak_bytes=max(peak - resident, 0))
    except Exception as error:  # a peer's failure is a row of the table, not the end of the run
        answer = Answer(fault=f"{type(error).__name__}: {error}"[:100])
    pipe.send(answer)
    pipe.close()
