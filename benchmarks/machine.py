"""What the scripts share: the machine in words, a command as a user runs it, measured, and arguments that are paths.

The `type` of an argument that is a path says whether the path is read or written; argparse then refuses a bad one in a
line and with exit code 2, before any work.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

from placement import Trace, open_trace
from placement.errors import InputError, PlacementError
from placement.support.array_files import read_arrays
from placement.support.atomic_files import check_folder, check_writable
from placement.support.parallel import usable_cores


def output_file(text: str) -> Path:
    """The type of a file to write."""
    return _checked(Path(text), check_writable)


def output_folder(text: str) -> Path:
    """The type of a folder to write files to, which is made if absent."""
    return _checked(Path(text), check_folder)


def input_trace(text: str) -> Path:
    """The type of a folder of expert-trace/1, which opens."""
    return _checked(Path(text), open_trace)


def input_file(text: str) -> Path:
    """The type of a file to read."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text} is no file; give one to read")
    return path


def input_folder(text: str) -> Path:
    """The type of a folder to read from."""
    path = Path(text).resolve()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no folder; give one to read from")
    return path


def input_arrays(text: str, *names: str) -> Path:
    """A file of arrays of NumPy that has these."""
    path = input_file(text)
    try:
        with path.open("rb") as file:
            lacking = sorted(set(names) - set(read_arrays(file, "")))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be read: {error}; give a .npz of {', '.join(names)}") from None
    if lacking:
        raise argparse.ArgumentTypeError(f"{text} has no array {lacking[0]}; give a .npz of {', '.join(names)}")
    return path


def input_texts(text: str) -> Path:
    """The type of a file of the texts of a trace, as `homes.py` has them."""
    return input_arrays(text, "token_ids", "offsets", "prompt_tokens")


def input_model(text: str) -> Path:
    """The type of a Hugging Face folder."""
    path = input_folder(text)
    if not (path / "config.json").is_file():
        raise argparse.ArgumentTypeError(f"{text} has no config.json; give a Hugging Face folder")
    return path


def checkout(text: str) -> Path:
    """The type of a checkout: without the package in it an installed one would be measured in its place."""
    path = input_folder(text)
    if not (path / "placement" / "__init__.py").exists():
        raise argparse.ArgumentTypeError(f"{text} holds no package placement; give a checkout")
    return path


def trace_and_seeds(about: str, seeds: Iterable[int]) -> tuple[Trace, list[int]]:
    """The trace and the seeds that `SCRIPT TRACE [SEED ...]` was given; without seeds, these."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=input_trace, help="folder of a real expert-trace/1; none is shipped")
    parser.add_argument("seeds", type=int, nargs="*", default=list(seeds), metavar="SEED", help="of the splits")
    given = parser.parse_args()
    return open_trace(given.trace), given.seeds


def run_script(main: Callable[[], None]) -> None:
    """Run a script; an error of our tree, such as a cluster that does not fit, is a line and its exit code."""
    try:
        main()
    except PlacementError as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _checked(path: Path, check: Callable[[Path], object]) -> Path:
    try:
        check(path)
    except InputError as error:
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
