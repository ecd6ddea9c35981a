"""Targets: recordings of engines."""

from __future__ import annotations

import shutil
from pathlib import Path

from fuzz_base import COUNTED_EXPERTS, TESTS, Target, folder, refusing

from placement.readers import READERS, detect
from placement.readers.base import ReadOptions
from placement.readers.convert import convert
from placement.testing.readers import Golden
from placement.traces.trace import open_trace
from placement.workload.count import count
from placement.workload.counts_file import read_counts

RECORDINGS = TESTS / "golden" / "readers"


def recorded(case: str, file: str) -> Target:
    """The file `file` of a golden recording is replaced; the others of the folder stay where the format needs them."""
    golden = Golden.load(RECORDINGS / case)
    reader = case.split("/")[0]
    together = reader == "tensorrt-llm"

    def run(data: bytes) -> None:
        with folder() as base:
            copy = base / golden.path.name
            copy.mkdir()
            for other in golden.path.iterdir() if together else ():
                shutil.copyfile(other, copy / other.name)
            (copy / file).write_bytes(data)
            for name in READERS:  # whoever is asked whether it is his must answer
                with refusing():
                    detect(copy) if name == reader else None
            with refusing():
                target = base / ("out.npz" if golden.counts is not None else "out")
                done = convert(copy, target, reader=reader, options=golden.options)
                _read_back(done.output)

    suffix = Path(file).suffix
    kind = {".pt": "zip", ".npz": "zip", ".jsonl": "lines"}.get(suffix, suffix.removeprefix("."))
    return Target(run=run, seeds=lambda: {case.replace("/", "-"): (golden.path / file).read_bytes()}, kind=kind)


def logical_count() -> Target:
    """JSON that SGLang takes with --init-expert-location."""

    def run(data: bytes) -> None:
        with folder() as base, refusing():
            (base / "x.json").write_bytes(data)
            detect(base / "x.json")
            options = ReadOptions(top_k=2)
            _read_back(convert(base / "x.json", base / "out.npz", reader="sglang", options=options).output)

    def seeds() -> dict[str, bytes]:
        return {
            "passes": b'{"rank": 0, "logical_count": [[[0, 0, 0], [1, 2, 3]], [[0, 0, 0], [4, 0, 2]]]}',
            "means": b'{"logical_count": [[100.5, 200.25, 300], [1e3, 2e3, 3e3]]}',
        }

    return Target(run=run, seeds=seeds, kind="json")


def _read_back(output: Path) -> None:
    """What a reader wrote must be sound: refusing it here would be a fault of the reader."""
    if output.is_file():
        read_counts(output)
        return
    trace = open_trace(output)
    if trace.model.num_experts <= COUNTED_EXPERTS:
        count(trace)
