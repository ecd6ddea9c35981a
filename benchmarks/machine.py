"""What a result file must say about where it was measured."""

from __future__ import annotations

import datetime
import platform
from importlib.metadata import version
from pathlib import Path

from placement.parallel import usable_cores


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
