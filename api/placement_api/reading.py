"""What was sent, unpacked and read in a process of its own with bounds on memory, time and disk: it may be anything."""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from placement.errors import OptionError, PlacementError
from placement.readers import AUTO, READERS, get_reader
from placement.readers.base import ReadOptions, parse_ids
from placement.readers.convert import convert_below
from placement.traces.trace import Trace, open_trace
from placement.workload.counts_file import ExpertCounts, is_counts_file, read_counts
from placement_api.archives import unpack
from placement_api.jobs.forks import PROCESSES
from placement_api.problems import Problem, ProblemBody, from_library, full_disk, is_full
from placement_api.settings import Limits

LOOK_S, SELDOM = 0.2, 20  # how often it is asked how much was written: less often where there are many files
NICE = 5
MEND = "send a part of it, or convert it with placement traces convert and send what that writes"


class ReadAs(BaseModel):
    """What a recording of an engine does not say of itself: the options of `placement traces convert`."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    reader: str = Field(default=AUTO, alias="from", max_length=40, description=f"{AUTO}, {', '.join(READERS)}")
    experts: int | None = Field(default=None, ge=1, le=65536, description="Experts of a layer")
    top_k: int | None = Field(default=None, ge=1, le=65536, description="Experts that a token visits")
    layer_ids: str | None = Field(default=None, max_length=4000, description="Index of each layer", examples=["3-60"])
    model: str | None = Field(default=None, max_length=200, description="Name of the model")
    keep_unwritten: bool = Field(default=False, description="Keep rows that look as if nobody had written to them")

    def options(self) -> ReadOptions:
        """Raises OptionError."""
        ids = None if self.layer_ids is None else parse_ids(self.layer_ids)
        return ReadOptions(
            model=self.model,
            num_experts=self.experts,
            top_k=self.top_k,
            layer_ids=ids,
            keep_unwritten=self.keep_unwritten,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was sent is a trace or counts, and lies at `path`: where it was, or where it was converted to.

    converted  of a recording: the reader that took it, why, and notes on what was left out
    notes      of an archive: on what it holds that is no traffic
    """

    path: str
    kind: str
    name: str
    num_tokens: int
    num_requests: int
    num_layers: int
    num_experts: int
    top_k: int
    converted: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()


def read(path: Path, work: Path, read_as: ReadAs, limits: Limits, *, archive: Path | None = None) -> Found:
    """Look at `path`; a recording of an engine is converted to a new file or folder in `work`.

    An `archive` is unpacked to the folder `path` before; whatever packed it, with folders around its files or without.
    Raises Problem.
    """
    ours, theirs = PROCESSES.Pipe(duplex=False)
    packed = None if archive is None else str(archive)
    arguments = (theirs, str(path), str(work), packed, read_as.model_dump(), asdict(limits))
    process = PROCESSES.Process(target=_child, args=arguments, daemon=True)
    process.start()
    theirs.close()
    end = time.monotonic() + limits.reading_s
    most = limits.unpacked_bytes * (1 if archive is None else 2)  # out of it, and what that becomes
    before = sum(_sizes(work))
    try:
        done, looked_s = False, 0.0
        while not done:
            done = ours.poll(max(LOOK_S, SELDOM * looked_s))
            began = time.monotonic()
            if not done and time.monotonic() > end:
                raise Problem(422, f"it is not read in {limits.reading_s:g} s", MEND)
            if sum(_sizes(work)) - before > most:
                raise Problem(413, f"it becomes more than {most} bytes", MEND)
            looked_s = time.monotonic() - began
        name, said = json.loads(ours.recv_bytes())
    except (EOFError, OSError):
        process.join()
        allowed = f"{limits.reading_bytes} bytes of memory are allowed"
        raise Problem(422, f"reading it ended with {process.exitcode}; {allowed}", MEND) from None
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()
    if name == "found":
        return Found(**said | {"notes": tuple(said["notes"])})
    body = ProblemBody.model_validate(said)
    raise Problem(body.status, body.detail, body.mend)


def _child(
    connection: Connection,
    path: str,
    work: str,
    archive: str | None,
    read_as: dict[str, Any],
    limits: dict[str, Any],
) -> None:
    os.nice(NICE)
    allowed = Limits(**limits)
    _bound(allowed.reading_bytes, int(allowed.reading_s) + 1)
    try:
        found = _taken(Path(path), Path(work), archive, read_as, allowed)
        connection.send_bytes(json.dumps(["found", asdict(found)]).encode())
        return
    except Problem as error:
        problem = error
    except PlacementError as error:
        problem = from_library(error)
    except MemoryError:
        problem = Problem(422, f"reading it needs more memory than {allowed.reading_bytes} bytes", MEND)
    except OSError as error:
        if not is_full(error):
            raise
        problem = full_disk()
    if archive is not None:  # many files take long to remove: here nobody waits for that
        shutil.rmtree(path, ignore_errors=True)
    said = problem.body.model_dump()
    if path.startswith(work):  # where it lies here is nobody's business
        said |= {name: said[name].replace(f"{Path(path).parent}/", "") for name in ("detail", "mend")}
    connection.send_bytes(json.dumps(["problem", said]).encode())


def _taken(path: Path, work: Path, archive: str | None, read_as: dict[str, Any], limits: Limits) -> Found:
    notes: list[str] = []
    if archive is not None:
        notes = unpack(Path(archive), path, limits)
        path = innermost(path)
    return replace(_look(path, work, ReadAs.model_validate(read_as)), notes=tuple(notes))


def _bound(memory: int, seconds: int) -> None:
    """What this process may take from here on; it was forked with the library in its memory."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    status = Path("/proc/self/status")
    if status.exists():
        held = next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (held + memory, held + memory))


def _look(path: Path, work: Path, read_as: ReadAs) -> Found:
    if path.is_dir() and ((path / "trace.json").exists() or any(path.glob("*/trace.json"))):
        if read_as != ReadAs():
            raise OptionError("expert-trace/1 says all of itself; leave all other fields out")
        return found_of(path, open_trace(path))
    if _is_counts(path, read_as):
        return found_of(path, read_counts(path, read_as.top_k))
    done = convert_below(path, work, reader=read_as.reader, options=read_as.options())
    opened = read_counts(done.output) if is_counts_file(done.output) else open_trace(done.output)
    told = {"reader": done.reader, "reason": done.reason, "notes": list(done.notes)}
    return found_of(done.output, opened, told)


def _is_counts(path: Path, read_as: ReadAs) -> bool:
    """Of files that counts and recordings may be in: whatever no reader knows, and `.npy` with a top_k, is counts."""
    if read_as.reader != AUTO or not is_counts_file(path):
        return False
    return (path.suffix == ".npy" and read_as.top_k is not None) or not any(
        get_reader(name).sniff(path) for name in READERS
    )


def found_of(path: Path, opened: Trace | ExpertCounts, converted: dict[str, Any] | None = None) -> Found:
    """What is told of an open trace or counts."""
    model, counts = opened.model, isinstance(opened, ExpertCounts)
    return Found(
        path=str(path),
        kind="counts" if counts else "trace",
        name=model.name[:200],
        num_tokens=opened.num_tokens if isinstance(opened, ExpertCounts) else opened.num_tokens_stored,
        num_requests=len(opened.count_QLE) if isinstance(opened, ExpertCounts) else len(opened.requests),
        num_layers=model.num_layers,
        num_experts=model.num_experts,
        top_k=model.top_k,
        converted=converted,
    )


def innermost(path: Path) -> Path:
    """The folder below which something lies beside others, or which holds files."""
    while len(inner := list(path.iterdir())) == 1 and inner[0].is_dir():
        path = inner[0]
    return path


def _sizes(folder: Path) -> Iterator[int]:
    """Of files that may be written or renamed meanwhile."""
    for path in folder.rglob("*"):
        try:
            yield path.stat().st_size
        except FileNotFoundError:
            continue
