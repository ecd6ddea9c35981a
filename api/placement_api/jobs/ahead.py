"""What the first solve on a machine waits for is compiled while the service starts, by processes of low priority."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from multiprocessing.connection import Connection

from placement.support.parallel import usable_cores
from placement_api.jobs.forks import PROCESSES, die_with_the_service

MOST, NICE = 2, 10  # each may take 200 MB for seconds


def compile_ahead() -> None:
    """Begin, and return at once. Jobs that begin meanwhile share the work (`placement.support.compiling`)."""
    threading.Thread(target=_run, name="compile-ahead", daemon=True).start()


def _run() -> None:
    with suppress(OSError, EOFError):  # the service ends, or can start no process: jobs compile what they need
        began = []
        for _ in range(min(usable_cores(), MOST)):
            ours, theirs = PROCESSES.Pipe()
            process = PROCESSES.Process(target=_compile, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            began.append((process, ours))
        for process, ours in began:
            process.join()
            ours.close()


def _compile(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the service decides when it ends
    os.nice(NICE)
    threading.Thread(target=die_with_the_service, args=(connection,), daemon=True).start()
    from placement.pipeline.warm_up import warm_up_first

    warm_up_first()
