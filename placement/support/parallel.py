"""The seam to whatever runs tasks side by side: any `concurrent.futures.Executor`.

The kernels run without the GIL, so threads are the default: one process, one compilation, nothing pickled.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from placement.errors import OptionError

A = TypeVar("A")
B = TypeVar("B")
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of its cores in a period, and the period


def run_tasks(task: Callable[[A], B], items: Iterable[A], executor: Executor | None) -> list[B]:
    """`[task(item) for item in items]`, side by side if there is an executor; results are in the order of items."""
    if executor is None:
        return [task(item) for item in items]
    futures = [executor.submit(task, item) for item in items]
    try:
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()


def run_in_order(task: Callable[[A], B], items: Iterable[A], executor: Executor | None, most: int) -> Iterator[B]:
    """As `run_tasks`, answer by answer, for more than memory holds: at most `most` are begun and not yet given."""
    if executor is None:
        yield from map(task, items)
        return
    waiting: deque[Future[B]] = deque()
    try:
        for item in items:
            if len(waiting) == most:
                yield waiting.popleft().result()
            waiting.append(executor.submit(task, item))
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def make_executor(workers: int | None) -> ThreadPoolExecutor:
    """A pool of `workers` threads; None means one for each core that this process may use."""
    return ThreadPoolExecutor(check_workers(workers), thread_name_prefix="placement")


def check_workers(workers: int | None) -> int:
    """The number that was asked for; None is one for each core that this process may use. Raises OptionError."""
    if workers is not None and workers < 1:
        raise OptionError(f"workers={workers} must be at least 1")
    return workers or usable_cores()


def width(executor: Executor) -> int:
    """How many tasks `executor` runs at once; the pools of the standard library keep it to themselves."""
    return int(getattr(executor, "_max_workers", 0)) or usable_cores()


def shares_memory(executor: Executor) -> bool:
    """True if the tasks of `executor` run in this process, and what they write is seen here."""
    return isinstance(executor, ThreadPoolExecutor) and not getattr(executor, "remote", False)


def usable_cores() -> int:
    """Cores that this process may run on, and no more than the CPU limit of its container, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_LIMIT.read_text().split()
        return cores if quota == "max" else max(min(cores, math.ceil(int(quota) / int(period))), 1)
    except (OSError, ValueError, ZeroDivisionError):
        return cores  # no container, or one that says it elsewhere
