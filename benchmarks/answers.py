"""Records what every command answers, so that a rebuild of the code can show that the answers stay.

    python benchmarks/answers.py record answers.json      # before
    python benchmarks/answers.py compare answers.json     # after: prints each answer that differs, exit code 1

All runs have fixed seeds and work limits. Long lists, exported files and converted recordings are kept as SHA-256, and
figures as `--json` prints them. Another processor may round differently: record and compare on one machine.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from machine import output_file

from placement.cli import main
from placement.cost.choices import REPLICA_CHOICES
from placement.cost.transports import TRANSPORTS
from placement.exporters import EXPORTERS
from placement.readers import READERS
from placement.solvers import SOLVERS

REPOSITORY = Path(__file__).parents[1]
GOLDEN = REPOSITORY / "tests" / "golden" / "readers"
WORK = ("--work-limit", "4000")
# name: options of `placement traces synth`, options of the cluster
SYNTHETIC = {
    "small": ("--layers 2 --experts 8 --top-k 2 --tokens 2000 --requests 40 --seed 1", "--nodes 2 --gpus-per-node 2"),
    "middle": ("--layers 3 --experts 32 --top-k 4 --tokens 3000 --requests 60 --seed 2", "--nodes 4 --gpus-per-node 2"),
    "wide": ("--layers 2 --experts 64 --top-k 6 --tokens 2000 --requests 30 --seed 3", "--nodes 8 --gpus-per-node 1"),
}
VOLATILE = {"seconds", "solve_s", "count_s", "created", "version", "elapsed_s"}
Answers = dict[str, Any]


def run(*words: str) -> tuple[int, str]:
    """(exit code, stdout) of one command; a refusal answers its message."""
    output, errors = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            main([str(word) for word in words])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, output.getvalue() if code == 0 else errors.getvalue().splitlines()[-1]


def digest(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder with their names."""
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    whole = hashlib.sha256()
    for file in files:
        whole.update(str(file.relative_to(path)).encode() + b"\0" + file.read_bytes())
    return whole.hexdigest()[:16]


def stable(value: Any) -> Any:
    """A document without what differs from run to run; each long list becomes its hash."""
    if isinstance(value, dict):
        return {name: stable(one) for name, one in value.items() if name not in VOLATILE}
    if isinstance(value, list):
        text = json.dumps(value)
        return hashlib.sha256(text.encode()).hexdigest()[:16] if len(text) > 400 else [stable(one) for one in value]
    return value


def answer(*words: str) -> Any:
    code, output = run(*words)
    return f"exit {code}: {output}" if code else stable(json.loads(output))


def solves(trace: str, cluster: list[str]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every way to solve one trace, with and without redundant experts."""
    for redundant in ("0", "8"):
        common = ["solve", trace, *cluster, "--redundant-experts", redundant, *WORK, "--json", "-o", "map.json"]
        for solver in SOLVERS:
            yield f"{redundant} solver {solver}", lambda c=common, s=solver: answer(*c, "--solver", s)
        verbs = {
            "group": ["group", "-o", "grouping.json", "--placement-out", "map.json"],
            "by domain": ["by-class", "--by", "domain", "--maps-out", "maps"],
            "pareto": ["front", "--front-out", "front"],
            "robust": ["robust", "--parts", "windows:2"],
        }
        for way, options in verbs.items():
            yield f"{redundant} {way}", lambda c=common, o=options: verb(c, o)
        ways: dict[str, list[str]] = {
            "objective balance": ["--objective", "balance"],
            "objective time": ["--objective", "time"],
            "transport rank": ["--transport", "rank"],
            "tight": ["--bound", "tight"],
        }
        ways |= {f"choice {choice}": ["--replica-choice", choice] for choice in REPLICA_CHOICES}
        for way, options in ways.items():
            yield f"{redundant} {way}", lambda c=common, o=options: answer(*c, *o)
        yield f"{redundant} change", lambda c=common: change(c)


def verb(common: list[str], options: list[str]) -> Any:
    """Another command with the options of a solve; what its placement file holds."""
    words = [*options, *common[1:]] if options[0] != "group" else [*options, *common[1:-2]]
    code, output = run(*words)
    return f"exit {code}: {output}" if code else stable(json.loads(Path("map.json").read_text()))


def change(common: list[str]) -> Any:
    """From the map of another seed, with few moves."""
    run(*common[:-1], "first.json", "--seed", "7")
    return answer(*common, "--from", "first.json", "--max-moves", "9")


def evaluates(trace: str, cluster: list[str]) -> Iterator[tuple[str, Callable[[], Any]]]:
    def prepare() -> str:
        """The map of the last line is what all of these measure and export."""
        code, output = run("solve", trace, *cluster, "--redundant-experts", "8", *WORK, "-o", "map.json")
        return output if code else digest(Path("map.json"))

    yield "map", prepare
    for choice in REPLICA_CHOICES:
        for transport in TRANSPORTS:
            words = ["evaluate", trace, "--map", "map.json", "--replica-choice", choice, "--transport", transport]
            yield f"evaluate {choice} {transport}", lambda w=words: answer(*w, "--json")
    for exporter in EXPORTERS:
        yield f"export {exporter}", lambda e=exporter, t=trace: export(e, t)
    advice = ["advise", trace, *cluster, "--work-limit", "300", "--json"]
    yield "advise", lambda w=advice: answer(*w)
    yield "info", lambda: answer("traces", "info", trace, "--json")
    yield "characterize", lambda: answer("traces", "info", trace, "--study", "--json")["study"]
    yield "counted", lambda: counted(trace, cluster)
    yield "counts alone", lambda: counts_alone(trace, cluster)


def export(exporter: str, trace: str) -> str:
    from placement.exporters import get_exporter

    target = Path(f"exported{get_exporter(exporter).suffixes[0]}")
    for load in ([], ["--load", trace]):
        code, output = run("export", "map.json", "--to", exporter, "-o", str(target), *load)
        if code == 0:
            return digest(target)
    return f"exit {code}: {output}"


def counted(trace: str, cluster: list[str]) -> Any:
    folder = Path(f"counts-{Path(trace).name}")
    run("traces", "count", trace, "-o", folder)
    arrays = [digest(file) for file in sorted(folder.glob("*.safetensors"))]  # its JSON names the folder's path
    return {"counts": arrays, "solved": answer("solve", folder, *cluster, *WORK, "--json", "-o", "counted.json")}


def counts_alone(trace: str, cluster: list[str]) -> Any:
    """The totals of all experts, in a file."""
    from placement import count, open_trace

    opened = open_trace(trace)
    np.save("loads.npy", count(opened).load_LE)
    words = ["solve", "loads.npy", *cluster, "--top-k", str(opened.model.top_k), "--objective", "balance"]
    return answer(*words, "--json", "-o", "alone.json")


def recordings() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every golden recording, converted with the options that its folder names."""
    for reader in READERS:
        for case in sorted((GOLDEN / reader).glob("*/")):
            yield f"convert {reader} {case.name}", lambda r=reader, c=case: convert(r, c)


def convert(reader: str, case: Path) -> Any:
    from placement.readers import get_reader
    from placement.testing.readers import Golden

    target = Path("converted") / f"{reader}-{case.name}"
    target.parent.mkdir(exist_ok=True)
    Golden.load(case).convert(get_reader(reader), target)
    return digest(target if target.exists() else target.with_suffix(".npz"))


def capacities() -> Iterator[tuple[str, Callable[[], Any]]]:
    """What each policy keeps of the same candidates."""
    for keep in ("score", "first", "last", "random"):
        for gamma in (0.5, 1.0, 1.5):
            yield f"admit {keep} {gamma}", lambda k=keep, g=gamma: admitted(k, g)


def admitted(keep: str, gamma: float) -> str:
    import torch

    from placement.runtime import CapacityPolicy
    from placement.runtime.admission import admit, order_keys

    torch.set_num_threads(1)
    rng = np.random.default_rng(11)
    scores_TK = torch.from_numpy(np.round(rng.random((256, 4)), 2).astype(np.float32))
    slots_A = torch.from_numpy(rng.integers(0, 16, 1024))
    policy = CapacityPolicy(mode="drop", gamma=gamma, keep=keep, seed=5)
    key_A = order_keys(policy, scores_TK, torch.from_numpy(rng.integers(0, 3, 256)), 0, 1).reshape(-1)
    limit_A = torch.full((1024,), int(np.ceil(gamma * 64)))
    kept_A = admit(key_A, slots_A, torch.ones(1024, dtype=torch.int64), limit_A, latest_first=keep == "last")
    return hashlib.sha256(kept_A.numpy().tobytes()).hexdigest()[:16]


def all_answers() -> Iterator[tuple[str, Callable[[], Any]]]:
    traces = {"examples": (str(REPOSITORY / "examples" / "traces"), ["--nodes", "4", "--gpus-per-node", "2"])}
    for name, (options, cluster) in SYNTHETIC.items():
        run("traces", "synth", "-o", name, *options.split())
        traces[name] = (name, cluster.split())
    for name, (trace, cluster) in traces.items():
        for source in (solves, evaluates):
            for what, ask in source(trace, cluster):
                yield f"{name}: {what}", ask
    yield from recordings()
    yield from capacities()


def command_line() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("file", type=output_file, help="JSON file of the answers")
    parser.add_argument("--only", default="", help="answers whose name has this text")
    given = parser.parse_args()
    file: Path = given.file.absolute()
    try:
        known: Answers = json.loads(file.read_text()) if given.what == "compare" else {}
    except (OSError, ValueError) as error:
        parser.error(f"{given.file} holds no answers: {error}; record some first")
    found: Answers = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, ask in all_answers():
            if given.only in name or name.endswith(": map"):  # what others measure and export
                found[name] = json.loads(json.dumps(ask()))
                print(f"{len(found)} {name}", file=sys.stderr)
    if given.what == "record":
        file.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        return
    wanted = {name for name in known if given.only in name}
    other = sorted(name for name in wanted | set(found) if known.get(name) != found.get(name))
    for name in other:
        print(f"{name}\n  was {json.dumps(known.get(name))[:300]}\n  is  {json.dumps(found.get(name))[:300]}")
    print(f"{len(wanted)} answers known, {len(found)} given now, {len(other)} differ")
    sys.exit(bool(other))


if __name__ == "__main__":
    command_line()
