"""What a service has started ends with the service, also before it is ready."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from placement_api.jobs.orphans import ParentWatch
from tests_service import Server, wait_until

CHILD = """
import time
from placement_api.jobs.orphans import ParentWatch
ParentWatch().start()
print("ready", flush=True)
time.sleep(600)
"""
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
print(child.pid, child.stdout.readline(), flush=True)
time.sleep(600)
"""


def test_a_child_ends_when_its_parent_is_killed() -> None:
    """By kill -9, amid work that takes minutes."""
    with subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        number, ready = parent.stdout.readline().split()
        child = psutil.Process(int(number))
        try:
            assert ready == "ready" and child.is_running()
            parent.kill()
            assert not psutil.wait_procs([child], timeout=30)[1]
        finally:
            if child.is_running():
                child.kill()


def test_no_thread_is_left_in_what_is_forked_from() -> None:
    """A thread would be missing in the forks, with whatever it had locked."""
    before = threading.active_count()
    watch = ParentWatch().start()
    assert threading.active_count() == before + 1
    watch.stop()
    assert threading.active_count() == before


def test_what_compiles_ahead_ends_with_its_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without compiled kernels processes begin to compile before any job: they outlive no service."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kernels"))
    server = Server(data=tmp_path / "data").start()
    try:
        forked_from = psutil.Process(server.pid).children
        wait_until(lambda: [one for child in forked_from() for one in child.children()])
    finally:
        server.close()  # which looks for processes that are left
