"""What a result file must say about where it was measured; a command as a user runs it, measured; where results go."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

from placement.errors import OutputError
from placement.support.atomic_files import check_folder, check_writable
from placement.support.parallel import usable_cores


def output_file(text: str) -> Path:
    """The `type` of an argument that names a file to write: refused while arguments are parsed, not after the work."""
    return _checked(Path(text), check_writable)


def output_folder(text: str) -> Path:
    """The same for a folder to write files to, which is made if absent."""
    return _checked(Path(text), check_folder)


def _checked(path: Path, check: Callable[[Path], None]) -> Path:
    try:
        check(path)
    except OutputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return path


def describe_machine() -> str:
    """One line: date, processor, cores, Python and the versions that matter."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    packages = ", ".join(f"{name} {version(name)}" for name in ("expert-placement", "numpy", "numba", "ortools"))
    today = datetime.datetime.now(tz=datetime.UTC).date()
    return f"{today}, {cpu}, {usable_cores()} cores, Python {platform.python_version()}, {packages}"


def placement(*arguments: str, environment: Mapping[str, str] | None = None) -> tuple[str, float, float, int]:
    """(stdout, wall seconds, seconds of all cores, peak resident bytes) of one `placement` command."""
    command = [str(Path(sys.executable).parent / "placement"), *arguments]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        output = process.stdout.read() if process.stdout else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with code {process.returncode}")
    return output, time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
