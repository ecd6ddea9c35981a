"""A job in a process of its own: it can be stopped at any moment, and dies with the service."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from placement.errors import PlacementError, TimeLimitError
from placement.support.progress import Progress
from placement_api.jobs.forks import PROCESSES, die_with_the_service
from placement_api.jobs.task import Answer, Task
from placement_api.problems import Problem, from_library

LOOK_S = 0.1  # how often it is asked whether to stop
TELL_S = 0.1  # how often the child tells of its progress
NICE = 10  # answers come before solving, which still gets a tenth of a busy core


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """answer if it was done, error (the body of a problem) if it failed, neither if it was stopped."""

    answer: Answer | None = None
    error: dict[str, Any] | None = None


def run(task: Task, *, limit_s: float, stop: Callable[[], bool], tell: Callable[[Progress], None]) -> Outcome:
    """Compute `task` for at most `limit_s`; `stop` is asked all the while, `tell` gets the progress."""
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=_work, args=(theirs, asdict(task)), daemon=True)
    process.start()
    end = time.monotonic() + limit_s
    theirs.close()
    try:
        while not stop():
            if time.monotonic() >= end:
                return Outcome(error=_overrun(limit_s))
            if not ours.poll(LOOK_S):
                continue
            try:
                name, said = json.loads(ours.recv_bytes())
            except (EOFError, OSError):
                process.join()
                return Outcome(error=_died(process.exitcode))
            if name == "progress":
                tell(Progress(**said))
            else:
                return Outcome(answer=Answer(**said)) if name == "answer" else Outcome(error=said)
        return Outcome()
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()


def _overrun(limit_s: float) -> dict[str, Any]:
    error = TimeLimitError(
        f"the job was ended after {limit_s:g} s, which is as long as this service lets a job run; ask for less with a "
        f"smaller work_limit or with time_limit_s, or start the service with a larger --job-time-limit"
    )
    return from_library(error).body.model_dump()


def _died(code: int | None) -> dict[str, Any]:
    problem = Problem(500, f"the process of the job ended with {code}", "give it more memory or a smaller problem")
    return problem.body.model_dump()


def _work(connection: Connection, task: dict[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the service decides when a job ends
    os.nice(NICE)
    threading.Thread(target=die_with_the_service, args=(connection,), daemon=True).start()
    from placement_api.jobs.work import compute  # loaded there already, and never in the service

    say = threading.Lock()

    def send(name: str, said: object) -> None:
        with say:
            connection.send_bytes(json.dumps([name, said]).encode())

    told = 0.0

    def listener(event: Progress) -> None:
        nonlocal told
        now = time.monotonic()
        if event.done in (0, event.total) or now - told > TELL_S:
            told = now
            send("progress", asdict(event))

    try:
        send("answer", asdict(compute(Task(**task), listener)))
    except Problem as error:
        send("error", _told(error, task))
    except PlacementError as error:
        send("error", _told(from_library(error), task))
    except MemoryError:
        send("error", Problem(500, "the job ran out of memory", "give a smaller problem").body.model_dump())


def _told(problem: Problem, task: dict[str, Any]) -> dict[str, Any]:
    """The body of a problem, without where files lie here: registered traces are called by the ends of their paths."""
    said = problem.body.model_dump()
    beside = [Path(trace) for trace in task["traces"] if not Path(trace).is_relative_to(task["data"])]
    hidden = [f"{folder}/" for folder in (task["data"], *(trace.parent for trace in beside))]
    for name in ("detail", "mend"):
        for place in hidden:
            said[name] = said[name].replace(place, "")
    return said
