"""A folder of counts, `expert-counts/1`: a trace counted once, perhaps in parts, and solved from any number of times.

    counts.json         what was counted and how, and every shard with a hash of its content
    counts.safetensors  the workload of each side
    pieces/             the same of each segment, from which an interrupted count goes on; may be deleted

The first two are the same bytes however the trace was cut into parts, and in whatever order these were merged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from functools import reduce
from operator import add
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ConfigDict

from placement.core.model import Model
from placement.documents.document import Document
from placement.errors import OptionError, OutputError, TraceError
from placement.support.atomic_files import check_folder, make_folder, remove_parts
from placement.traces.trace import Span, Trace
from placement.workload.count import count_segments
from placement.workload.count_segment import count_segment
from placement.workload.counted import CountedTrace, counted_of, plan_of
from placement.workload.counts_arrays import (
    CountedShard,
    Settings,
    is_counted,
    piece_name,
    piece_sources,
    read_packed,
    trace_names,
    write_packed,
    write_piece,
)
from placement.workload.segment import segments_of, spans_of

SCHEMA = "expert-counts/1"
MANIFEST, ARRAYS, PIECES = "counts.json", "counts.safetensors", "pieces"
WHOLE = (1, 1)
MOST_PARTS = 999_999
BEGUN = "give the same options, or another folder"


def _checked_part(part: tuple[int, int]) -> tuple[int, int]:
    if not 1 <= part[0] <= part[1] <= MOST_PARTS:
        raise ValueError(f"{part[0]}/{part[1]} is no part; give I/N with I from 1 to N, and N at most {MOST_PARTS:,}")
    return part


class CountsManifest(Document):
    """part: (i, n), the shards of part i of n."""

    model_config = ConfigDict(frozen=True, strict=False)
    SCHEMA = SCHEMA
    ERROR = TraceError
    MEND = "remove the folder and count again"

    complete: bool
    model: Model
    settings: Settings
    part: Annotated[tuple[int, int], AfterValidator(_checked_part)]
    num_tokens: int
    sources: list[CountedShard]

    @staticmethod
    def of(
        model: Model, settings: Settings, part: tuple[int, int], sources: Sequence[CountedShard] = (), *, complete: bool
    ) -> CountsManifest:
        return CountsManifest(
            schema=SCHEMA,
            complete=complete,
            model=model,
            settings=settings,
            part=part,
            num_tokens=sum(source.stop - source.start for source in sources),
            sources=sorted(sources),
        )


def is_counts_folder(path: str | Path) -> bool:
    return (Path(path) / MANIFEST).is_file()


def count_to_folder(
    trace: Trace,
    folder: str | Path,
    *,
    holdout: float,
    seed: int = 0,
    part: tuple[int, int] = WHOLE,
    executor: Executor | None = None,
    progress: Callable[[int, bool], None] | None = None,
) -> CountedTrace:
    """Count a trace, or part `i` of `n` of its shards (`part` = (i, n)), into `folder`.

    Segments that were counted into the folder before are not counted again, unless their files have changed.
    progress is called with the tokens of each segment, and whether it was counted now. Raises TraceError, OptionError,
    and OutputError where the folder holds something else.
    """
    folder, model = Path(folder), trace.model
    check_folder(folder)
    if trace.selected_Q is not None or trace.cut is not None or not trace.drafts:
        raise OptionError("a folder of counts is of whole traces; write what is selected to a trace of its own")
    plan = plan_of(trace, holdout=holdout, seed=seed)
    settings = Settings(
        seed=seed, holdout=holdout, sample_tokens=plan.sample_tokens, profile_requests=plan.profile_requests
    )
    _begin(folder, model, settings, part)
    segments = list(segments_of(_spans_of_part(trace, *part)))
    names = trace_names(trace)
    paths = [folder / PIECES / piece_name(segment, names) for segment in segments]
    known = [is_counted(path, plan, segment) for path, segment in zip(paths, segments, strict=True)]
    answers = count_segments(plan, (one for one, there in zip(segments, known, strict=True) if not there), executor)
    total: CountedTrace | None = None
    for path, segment, there in zip(paths, segments, known, strict=True):
        if there:
            piece = read_packed(path, model, settings)
        else:
            counts = next(answers)
            piece = counted_of(holdout, counts.sides)
            write_piece(path, plan, segment, counts, names, piece)
        total = piece if total is None else total + piece
        if progress is not None:
            progress(piece.num_tokens, not there)
    for left in set((folder / PIECES).glob("*.safetensors")) - set(paths):
        left.unlink()
    if total is None:
        total = counted_of(holdout, count_segment(plan, ()).sides)
    _finish(folder, total, settings, [source for path in paths for source in piece_sources(path)], part)
    return total


def read_counted(folder: str | Path) -> CountedTrace:
    """Read a folder of counts. Raises TraceError where it is not complete or not one."""
    folder = Path(folder)
    manifest = read_complete(folder)
    counted = read_packed(folder / ARRAYS, manifest.model, manifest.settings)
    if counted.num_tokens != manifest.num_tokens:
        raise TraceError(
            f"{folder / ARRAYS} is not of {folder / MANIFEST}; run the same `placement traces count` again"
        )
    return counted


def read_complete(folder: Path) -> CountsManifest:
    """The manifest of a folder that is complete. Raises TraceError of any other."""
    if not is_counts_folder(folder):
        raise TraceError(f"{folder} is no folder of counts: it has no {MANIFEST}")
    manifest = CountsManifest.read(folder / MANIFEST)
    if not manifest.complete:
        raise TraceError(f"{folder} is not complete; run the same `placement traces count` again: it goes on")
    return manifest


def merge_counted(folders: Sequence[str | Path], out: str | Path) -> CountedTrace:
    """Write to the new folder `out` what the folders have counted together, in whatever order they are given.

    Raises TraceError where they do not belong together: other models or settings, a shard in two of them, or one of
    the parts missing.
    """
    paths = [Path(folder) for folder in folders]
    check_folder(out)
    manifests = [read_complete(path) for path in paths]
    first = manifests[0]
    parts = {manifest.part for manifest in manifests}
    wanted = ((number, of) for of in sorted({of for _, of in parts}) for number in range(1, of + 1))
    for number, of in wanted:
        if (number, of) not in parts:
            raise TraceError(f"part {number}/{of} is missing; give the folders of all {of} parts")
    counted_in: dict[CountedShard, Path] = {}
    for path, manifest in zip(paths, manifests, strict=True):
        if not first.model.same_routing(manifest.model):
            raise TraceError(f"{path} is of another model than {paths[0]}; merge counts of one model")
        if manifest.settings != first.settings:
            raise TraceError(
                f"{path} was counted with {manifest.settings}, {paths[0]} with {first.settings}; count them alike"
            )
        for source in manifest.sources:
            if source in counted_in:
                raise TraceError(
                    f"{source.trace}/{source.shard} is counted in {counted_in[source]} and in {path}; its tokens would "
                    f"count double"
                )
            counted_in[source] = path
    by_name = sorted(zip(manifests, paths, strict=True), key=lambda one: repr(one[0].model))  # a sum has the first name
    total = reduce(add, (read_counted(path) for _, path in by_name))
    make_folder(out)
    _finish(Path(out), total, first.settings, list(counted_in), WHOLE)
    return total


def parse_part(text: str) -> tuple[int, int]:
    """`3/8` as (3, 8). Raises OptionError."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise OptionError(f"part={text!r} is no part; give I/N with I from 1 to N, as 3/8")
    return int(found[1]), int(found[2])


def _spans_of_part(trace: Trace, number: int, of: int) -> Iterator[Span]:
    """Each span is in the part in which its middle token is when the tokens are dealt out evenly."""
    before = 0
    for span in spans_of(trace):
        if (2 * before + span.num_tokens) * of // (2 * trace.num_tokens_stored) == number - 1:
            yield span
        before += span.num_tokens


def _begin(folder: Path, model: Model, settings: Settings, part: tuple[int, int]) -> None:
    """Make the folder, or check that what it holds was counted alike, and say that it is not complete."""
    if is_counts_folder(folder):
        before = CountsManifest.read(folder / MANIFEST)
        if before.part != part:
            (was, of), (number, parts) = before.part, part
            raise OptionError(f"{folder} was begun with --part {was}/{of}, now {number}/{parts}; {BEGUN}")
        for name, was_given, value in (("model", before.model, model), ("settings", before.settings, settings)):
            if was_given != value:
                raise OptionError(f"{folder} was begun with {name} {was_given}, now {value}; {BEGUN}")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} exists and is no folder of counts; nothing is overwritten: name another")
    make_folder(folder / PIECES)
    remove_parts(folder)
    remove_parts(folder / PIECES)
    CountsManifest.of(model, settings, part, complete=False).write(folder / MANIFEST)


def _finish(
    folder: Path, counted: CountedTrace, settings: Settings, sources: list[CountedShard], part: tuple[int, int]
) -> None:
    write_packed(folder / ARRAYS, counted)
    CountsManifest.of(counted.model, settings, part, sources, complete=True).write(folder / MANIFEST)
