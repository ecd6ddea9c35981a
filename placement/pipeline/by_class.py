"""Solves for all traffic and for each class of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace

from placement.core.cluster import Cluster
from placement.core.placement import Placement
from placement.errors import InfeasibleError, LimitError, OptionError
from placement.pipeline.by_class_solution import ONE, OWN, ByClass, TrafficClass
from placement.pipeline.run import BASELINES, begin
from placement.pipeline.solution import Solution
from placement.pipeline.source import TraceSource, source_of
from placement.solvers.options import Options
from placement.support.progress import Listener, Progress, ignore
from placement.traces.classes import Sides, split_classes
from placement.traces.trace import Trace
from placement.workload.counted import CountedTrace
from placement.workload.counts_file import ExpertCounts

LONGEST_NAME = 80


def solve_by(
    trace: Trace | ExpertCounts | CountedTrace,
    cluster: Cluster,
    options: Options | None = None,
    *,
    by: str,
    holdout: float | None = None,
    engine: Executor | None = None,
    workers: int | None = None,
    listener: Listener = ignore,
) -> ByClass:
    """Solve for all traffic, then for each class of it alone; measure both maps on the held-out requests of the class.

    by  `domain`, `category` or `phase`, see `placement.traces.classes`

    The search for a class's own map also starts from the one for all: with `auto` and `anneal` it is never worse on the
    class's training objective. Requests of no class are fitted by the one map. `options.time_limit_s` is for all solves
    together. engine: as of `placement.solve`; deterministic like it. Raises TraceError, InfeasibleError, LimitError,
    and OptionError where fewer than two classes are found.
    """
    options = options or Options()
    source = source_of(trace)
    with begin(source, cluster, options, holdout, engine=engine, workers=workers, listener=listener) as run:
        holdout = run.holdout
        if options.moves_limited:
            raise OptionError("maps by class are new maps and know no current one; leave out max_moves")
        names, left_out, sides, classes = split_classes(source.trace("by-class"), by, holdout, options.seed)
        solves = 1 + len(names)
        each = options
        if options.time_limit_s is not None:
            each = replace(options, time_limit_s=options.time_limit_s / solves)

        def solved(number: int, sides: Sides, known: dict[str, Placement], name: str) -> Solution:
            """Fitted to the first of the sides, measured on all of them beside the known maps."""
            views = [TraceSource(side) for side in sides]
            workload = run.count(views[0], options.seed, listener=ignore if number else listener)
            found, layers = run.fit(
                workload,
                cluster,
                each,
                baselines=() if known else BASELINES,
                starts=known.get(ONE),
                listener=_part_of(listener, number, solves),
            )
            maps = known | {OWN: found[options.solver]} if known else found
            listener(Progress(stage="evaluate", done=number, total=solves))
            figures = [run.measure(view, maps, cluster, options) for view in views]
            return Solution(
                cluster=cluster,
                options=options,
                layers=layers,
                result_name=name,
                maps=maps,
                train=figures[0],
                held_out=figures[1] if len(figures) > 1 else {},
                holdout=holdout if len(figures) > 1 else 0.0,
                input_hash=workload.digest(),
            )

        whole = solved(0, sides, {}, options.solver)
        known = {name: whole.maps[name] for name in BASELINES} | {ONE: whole.placement}
        answers = []
        for number, (name, file) in enumerate(zip(names, file_names(names), strict=True), start=1):
            try:
                own = solved(number, classes[number - 1], known, OWN)
            except (InfeasibleError, LimitError) as error:
                raise type(error)(f"{by} {name!r}: {error}") from None
            answers.append(TrafficClass(name=name, file=file, solution=own))
        listener(Progress(stage="evaluate", done=solves, total=solves))
    return ByClass(by=by, solution=whole, classes=tuple(answers), left_out=left_out)


def _part_of(listener: Listener, number: int, total: int) -> Listener:
    """Hears one of several solves, so that all of them make one bar that starts once."""

    def heard(event: Progress) -> None:
        if event.done or not number:
            listener(replace(event, done=event.done + number * event.total, total=event.total * total))

    return heard


def file_names(names: Sequence[str]) -> list[str]:
    """`<name>.json` with letters, digits, dots, dashes and underscores only; equal ones, in any case, are numbered."""
    taken: set[str] = set()
    files = []
    for name in names:
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")[:LONGEST_NAME] or "class"
        number, file = 1, stem
        while file.lower() in taken:
            number += 1
            file = f"{stem}-{number}"
        taken.add(file.lower())
        files.append(f"{file}.json")
    return files
