"""Coverage-guided fuzzing with atheris: `python tests/fuzz/run.py --seconds 600`, or `make fuzz SECONDS=600`.

Targets take turns, one process at a time. Each starts from its seeds, what `corpus/` keeps and what earlier runs found
(the folder of --work). A finding is written there once for each place that it comes from, with its traceback, and the
run goes on; --keep then adds the smallest inputs that reach something new to `corpus/`. Exit code 1 if there was one.
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
from pathlib import Path

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
ROOT = HERE.parent.parent
TIMEOUT_S = 10
MEMORY_MIB = 512  # above what the libraries take
LONGEST_BYTES = 16_384


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", action="append", help="Name in fuzz_targets.py; may be repeated. [default: all]")
    parser.add_argument("--seconds", type=float, default=600.0, help="Altogether, shared equally by the targets.")
    parser.add_argument("--memory-limit", type=int, default=MEMORY_MIB, help="MiB above what the libraries take.")
    parser.add_argument("--work", type=Path, default=ROOT / ".fuzz", help="Where inputs and findings go.")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        fuzz(options.child, options.work, options.seconds, options.memory_limit)
        return
    sys.path.insert(0, str(HERE))
    from fuzz_targets import TARGETS

    names = options.target or list(TARGETS)
    unknown = sorted(set(names) - set(TARGETS))
    if unknown:
        parser.error(f"--target {unknown[0]} is unknown; choose of {', '.join(TARGETS)}")
    print(f"{'target':45}{'runs':>10}{'runs/s':>8}{'edges at first':>16}{'at last':>9}{'findings':>10}")
    found = sum(supervise(name, options.work, options.seconds / len(names), options.memory_limit) for name in names)
    print(f"{found} findings in {options.work}" if found else "no findings")
    sys.exit(bool(found))


def supervise(name: str, work: Path, seconds: float, memory: int) -> int:
    """Run a target in processes of its own until its time is over: a hang or too much memory ends one."""
    before, findings = time.monotonic(), work / name / "findings"
    findings.mkdir(parents=True, exist_ok=True)
    known = set(findings.iterdir())
    runs, edges = 0, []
    while (left := seconds - (time.monotonic() - before)) > 0.5:
        command = [sys.executable, __file__, "--child", name, "--work", work, "--seconds", left, "--memory-limit", memory]
        environment = os.environ | {"NUMBA_DISABLE_JIT": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run([str(one) for one in command], env=environment, capture_output=True, text=True)
        (work / name / "log.txt").write_text(done.stderr)
        runs += max(map(int, re.findall(r"^#(\d+)\t|executed_units: +(\d+)", done.stderr) and
                        [int(a or b) for a, b in re.findall(r"(?m)^#(\d+)\t|executed_units: +(\d+)", done.stderr)] or [0]))
        edges += map(int, re.findall(r"cov: (\d+)", done.stderr))
        if "INITED" not in done.stderr:
            print(done.stderr[-2000:], file=sys.stderr)
            break
    new = [one for one in findings.iterdir() if one not in known and one.suffix != ".txt"]
    rate = runs / (time.monotonic() - before)
    print(f"{name:45}{runs:>10,}{rate:>8.0f}{edges[0] if edges else 0:>16,}{max(edges, default=0):>9,}{len(new):>10}", flush=True)
    return len(new)


def fuzz(name: str, work: Path, seconds: float, memory: int) -> None:
    """One process: until the time is over, or an input hangs or takes too much memory."""
    sys.path[:0] = [str(HERE), str(ROOT), str(ROOT / "api"), str(HERE.parent / "checkpoint")]
    import atheris

    with atheris.instrument_imports(include=["placement", "placement_api"]):
        from fuzz_mutations import mutated
        from fuzz_targets import TARGETS

        target = TARGETS[name]()
        seeds = target.seeds()
        for data in seeds.values():
            target.run(data)
    warnings.simplefilter("error", RuntimeWarning)
    inputs, findings = work / name / "inputs", work / name / "findings"
    inputs.mkdir(parents=True, exist_ok=True)
    kept = CORPUS / name
    for seed, data in {**seeds, **{one.name: one.read_bytes() for one in (kept.iterdir() if kept.is_dir() else ())}}.items():
        (inputs / f"seed-{seed}").write_bytes(data)
    places: set[str] = set()

    def one_input(data: bytes) -> None:
        try:
            target.run(data)
        except Exception as error:
            frames = [one for one in traceback.extract_tb(error.__traceback__) if "site-packages" not in one.filename]
            place = f"{type(error).__name__}-{Path(frames[-1].filename).stem}-{frames[-1].lineno}"
            if place not in places:
                places.add(place)
                (findings / place).write_bytes(data)
                (findings / f"{place}.txt").write_text("".join(traceback.format_exception(error))[-6000:])

    def change(data: bytes, longest: int, seed: int) -> bytes:
        if seed % 2:
            return bytes(atheris.Mutate(data, longest))
        return mutated(data, target.kind, random.Random(seed))[:longest]

    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    arguments = [
        sys.argv[0],
        f"-max_total_time={max(int(seconds), 1)}",
        f"-rss_limit_mb={taken + memory}",
        f"-timeout={TIMEOUT_S}",
        f"-max_len={LONGEST_BYTES}",
        f"-artifact_prefix={findings}/",
        "-print_final_stats=1",
        str(inputs),
    ]
    atheris.Setup(arguments, one_input, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
