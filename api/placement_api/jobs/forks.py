"""The process that jobs and readings are forked from. It loads the library while the service itself is loaded."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing import forkserver
from multiprocessing.connection import Connection

PROCESSES = multiprocessing.get_context("forkserver")
LOADED = [f"placement_api.jobs.{name}" for name in ("loading", "work", "warm")]


def start_forks() -> None:
    """Start that process, unless it runs."""
    PROCESSES.set_forkserver_preload(["__main__", *LOADED])
    forkserver.ensure_running()


def die_with_the_service(connection: Connection) -> None:
    """In a thread of a process whose end of a pipe nobody writes to: it is readable when the service is gone."""
    try:
        connection.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)
