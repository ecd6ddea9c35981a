"""Coverage-guided fuzzing with atheris: `python tests/fuzz/run.py --seconds 600`, or `make fuzz SECONDS=600`.

Targets take turns, one process at a time. Each starts from its seeds, from what `corpus/` keeps and from what earlier
runs left in the folder of --work. A finding is written there once for each place where it was raised, with its
traceback, and the run goes on; a hang or too much memory ends a process, and the next one goes on. With --keep, the
smallest inputs that reach lines of their own are copied to `corpus/`. The exit code is 1 if anything was found.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import resource
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CORPUS = HERE / "corpus"
OURS = ("placement", "placement_api")
TIMEOUT_S = 10
MEMORY_MIB = 512
LONGEST_BYTES = 16_384
LONGEST_KEPT_BYTES = 4_096
MOST_KEPT = 12  # inputs of a target, beside those that were findings

sys.path[:0] = [str(one) for one in (HERE, HERE.parent / "checkpoint", ROOT / "api", ROOT)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append", help="Name in fuzz_targets.py; may be repeated. [default: all]")
    parser.add_argument("--seconds", type=float, default=600.0, help="In all, shared equally by the targets.")
    parser.add_argument("--rss-limit", type=int, default=MEMORY_MIB, help="MiB above what the libraries take.")
    parser.add_argument("--work", type=Path, default=ROOT / ".fuzz", help="Where inputs and findings go.")
    parser.add_argument("--keep", action="store_true", help="Copy what reaches new lines to the corpus, and end.")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        fuzz(options.child, options.work / options.child, options.seconds, options.rss_limit)
        return
    from fuzz_targets import TARGETS

    names = options.target or list(TARGETS)
    if unknown := sorted(set(names) - set(TARGETS)):
        parser.error(f"--target {unknown[0]} is unknown; choose of {', '.join(TARGETS)}")
    if options.keep:
        for name in names:
            keep(name, options.work / name)
        return
    say(f"{'target':40}{'runs':>12}{'runs/s':>9}{'edges: first':>14}{'last':>7}{'findings':>10}")
    share = options.seconds / len(names)
    found = sum(supervise(name, options.work / name, share, options.rss_limit) for name in names)
    say(f"{found} findings in {options.work}" if found else "no findings")
    sys.exit(bool(found))


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def supervise(name: str, work: Path, seconds: float, rss_limit: int) -> int:
    """Run a target in processes of its own until its time is over. Returns the number of new findings."""
    end, findings = time.monotonic() + seconds, work / "findings"
    findings.mkdir(parents=True, exist_ok=True)
    known = set(findings.iterdir())
    runs, edges = 0, [0]
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1", "OMP_NUM_THREADS": "1"}  # indices out of bounds then raise
    while (left := end - time.monotonic()) > 1:
        limits = ["--seconds", f"{left}", "--rss-limit", f"{rss_limit}"]
        command = [sys.executable, __file__, "--child", name, "--work", str(work.parent), *limits]
        told = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace").stderr
        (work / "log.txt").write_text(told)
        if "INITED" not in told:
            raise SystemExit(f"{name} does not start:\n{told[-2000:]}")
        runs += max(int(number) for number in re.findall(r"(?m)^#(\d+)", told))
        edges += [int(number) for number in re.findall(r"cov: (\d+)", told)]
    new = [one for one in findings.iterdir() if one not in known and one.suffix != ".txt"]
    say(f"{name:40}{runs:>12,}{runs / seconds:>9.0f}{edges[1]:>14,}{max(edges):>7,}{len(new):>10}")
    return len(new)


def fuzz(name: str, work: Path, seconds: float, rss_limit: int) -> None:
    """One process: until the time is over, or an input hangs or takes too much memory."""
    import atheris

    with atheris.instrument_imports(include=list(OURS)):
        from fuzz_mutations import mutated
        from fuzz_targets import TARGETS

        target = TARGETS[name]()
        seeds = dict(target.seeds())
        for data in seeds.values():  # what is imported late is instrumented too
            target.run(data)
    inputs, findings, places = work / "inputs", work / "findings", set()
    inputs.mkdir(parents=True, exist_ok=True)
    kept = {path.name: path.read_bytes() for path in (CORPUS / name).glob("*") if not path.name.startswith("bomb-")}
    for what, data in {**seeds, **kept}.items():  # bombs are slow without machine code; `make test` replays them
        (inputs / f"seed-{what}").write_bytes(data)
    warnings.simplefilter("error", RuntimeWarning)
    # hashes wrap around: as machine code without a word, as Python with a warning
    wrapping = r"placement\.(support\.hash64|workload\.counting)$"
    warnings.filterwarnings("ignore", "overflow encountered in scalar", RuntimeWarning, wrapping)

    def run(data: bytes) -> None:
        try:
            target.run(data)
        except Exception as error:
            frames = [one for one in traceback.extract_tb(error.__traceback__) if "site-packages" not in one.filename]
            place = f"{type(error).__name__}-{Path(frames[-1].filename).stem}-{frames[-1].lineno}"
            if place not in places:
                places.add(place)
                (findings / place).write_bytes(data)
                (findings / f"{place}.txt").write_text("".join(traceback.format_exception(error))[-8000:])

    def change(data: bytes, longest: int, seed: int) -> bytes:
        if seed % 2:
            return bytes(atheris.Mutate(data, longest))
        return mutated(data, target.kind, random.Random(seed))[:longest]

    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    limits = [f"-max_total_time={max(int(seconds), 1)}", f"-rss_limit_mb={taken + rss_limit}", f"-timeout={TIMEOUT_S}"]
    told = [f"-max_len={LONGEST_BYTES}", f"-artifact_prefix={findings}/", "-print_final_stats=1", str(inputs)]
    atheris.Setup([sys.argv[0], *limits, *told], run, custom_mutator=change)
    atheris.Fuzz()


def keep(name: str, work: Path) -> None:
    """Of the inputs of earlier runs, the smallest that reach lines which neither seeds nor smaller ones do."""
    from fuzz_targets import TARGETS

    target = TARGETS[name]()
    folder = CORPUS / name
    known = [*target.seeds().values(), *(path.read_bytes() for path in folder.glob("*"))]
    seen: set[Any] = set()
    for data in known:
        with tracing(seen):
            attempt(target, data)
    found = (path.read_bytes() for path in (work / "inputs").glob("*"))
    kept = 0
    for data in sorted({one for one in found if len(one) <= LONGEST_KEPT_BYTES}, key=lambda one: (len(one), one)):
        before = len(seen)
        with tracing(seen):
            attempt(target, data)
        if len(seen) > before and kept < MOST_KEPT:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)
            kept += 1
    say(f"{name}: {kept} inputs kept")


def attempt(target: Any, data: bytes) -> None:
    try:
        target.run(data)
    except Exception as error:
        say(f"still raises {type(error).__name__}: {str(error)[:200]}")


@contextmanager
def tracing(seen: set[Any]) -> Iterator[None]:
    """Adds the lines of ours that are run within the block, as (file, line)."""

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not any(f"/{one}/" in frame.f_code.co_filename for one in OURS):
            return None
        if event == "line":
            seen.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(None)


if __name__ == "__main__":
    main()
