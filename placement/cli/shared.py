"""Options and output that several commands share."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from placement.core.choices import REPLICA_CHOICE, TRANSPORT
from placement.cost.choices import REPLICA_CHOICES
from placement.cost.transports import TRANSPORTS
from placement.errors import InputError, OptionError, TraceError
from placement.exporters.engines import ENGINES
from placement.readers import detect
from placement.support.progress import Listener, Progress, ignore

if TYPE_CHECKING:
    from rich.console import Console

    from placement.core.cluster import Cluster
    from placement.traces.trace import Trace
    from placement.workload.counted import CountedTrace
    from placement.workload.counts_file import ExpertCounts

Traces = Annotated[
    list[str], typer.Argument(metavar="TRACES...", help="Folders (or globs, or folders of folders) of expert-trace/1.")
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON document on stdout and nothing else.",
        rich_help_panel="Running and output",
    ),
]
WithoutDrafts = Annotated[
    bool, typer.Option("--without-drafts", help="Leave out drafts of speculative decoding that were rejected.")
]
MapCluster = Annotated[Path | None, typer.Option(help="cluster.yaml, instead of what the placement file says.")]
TopK = Annotated[
    int | None,
    typer.Option(
        help="Experts that a token visits, where TRACES is a file of counts without it.", rich_help_panel="Measuring"
    ),
]
Holdout = Annotated[float, typer.Option(help="Share of the requests to measure on, not to fit; 0 fits all.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.", rich_help_panel="Search")]
Workers = Annotated[
    int | None,
    typer.Option(help="Threads; the answer is the same. [default: the cores]", rich_help_panel="Running and output"),
]
Engine = Annotated[
    str | None,
    typer.Option(
        "--for",
        help=f"Engine that the map is for: {', '.join(ENGINES)}. It sets the two options below, and the format of "
        "`placement export`.",
        rich_help_panel="Goal",
    ),
]
CHOICE_SAID = f"How a copy is chosen among replicas: {', '.join(REPLICA_CHOICES)}."
TRANSPORT_SAID = f"What the engine sends, one copy for each: {', '.join(TRANSPORTS)} (every token everywhere)."
ReplicaChoice = Annotated[
    str,
    typer.Option(
        help=f"{CHOICE_SAID} [default: as the engine does, else {REPLICA_CHOICE}]",
        show_default=False,
        rich_help_panel="Goal",
    ),
]
Transport = Annotated[
    str,
    typer.Option(
        help=f"{TRANSPORT_SAID} [default: as the engine does, else {TRANSPORT}]",
        show_default=False,
        rich_help_panel="Goal",
    ),
]

LostRanks = Annotated[
    str | None,
    typer.Option(
        metavar="RANKS",
        help="Ranks of the map in use whose weights are gone, such as 5 or 3,8-15. [default: the last, if GPUs are "
        "fewer]",
        rich_help_panel="Change of a map in use",
    ),
]

WORTH_TELLING_S, TELL_EVERY_S = 5.0, 30.0
IN_STEPS = ("count", "compile", "solve", "advise")
LABELS = {
    "count": "counting tokens",
    "compile": "compiling",
    "solve": "solving layers",
    "robust": "worst part",
    "group": "grouping requests",
    "evaluate": "measuring maps",
    "advise": "solving maps",
    "apply": "writing files",
}


def print_json(document: Any) -> None:
    sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")


def stdout_console() -> Console:
    """Tables go to stdout; where it is not a terminal they are 100 columns wide and without colour."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=100)


@contextmanager
def progress_listener(quiet: bool) -> Iterator[Listener]:
    """A bar with what is done and the time left on a terminal, plain lines elsewhere; always on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    console = Console(stderr=True)
    if quiet:
        yield ignore
    elif not console.is_terminal:
        yield _plain_lines()
    else:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with RichProgress(*columns, console=console, transient=True) as bar:
            tasks: dict[str, Any] = {}

            def show(event: Progress) -> None:
                if event.stage not in tasks:
                    tasks[event.stage] = bar.add_task(LABELS[event.stage], total=event.total)
                bar.update(tasks[event.stage], completed=event.done, total=event.total)

            yield show


def _plain_lines() -> Listener:
    """A line at the start, about every fifth of the way or half minute, and at the end of each stage; with the time
    that is left, by the pace so far, where that is worth telling."""
    begun: dict[str, float] = {}
    last: dict[str, tuple[int, float]] = {}

    def show(event: Progress) -> None:
        now, fifth = time.monotonic(), 5 * event.done // max(event.total, 1)
        if fifth < last.get(event.stage, (0, now))[0] or event.stage not in begun:
            begun[event.stage], last[event.stage] = now, (0, now)
        before, told = last[event.stage]
        in_steps = event.stage in IN_STEPS and (fifth > before or now - told > TELL_EVERY_S)
        if event.done not in (0, event.total) and not in_steps:
            return
        last[event.stage] = (fifth, now)
        left = (now - begun[event.stage]) * (event.total - event.done) / max(event.done, 1)
        known = event.done and event.stage != "compile"  # its pieces are unlike, the largest first
        remaining = f", {left:.0f} s left" if known and left >= WORTH_TELLING_S else ""
        print(f"{LABELS[event.stage]}: {event.done}/{event.total}{remaining}", file=sys.stderr)

    return show


def open_any(paths: list[str], top_k: int | None) -> Trace | ExpertCounts | CountedTrace:
    """Traces, one file of counts, or one folder of counts."""
    from placement.workload.counts_folder import is_counts_folder

    if not any(map(is_counts_folder, paths)):
        return open_input(paths, top_k)
    if top_k is not None:
        raise OptionError(f"--top-k {top_k} is for files of counts; a folder of counts says it; leave it out")
    return open_counted(paths)


def open_input(paths: list[str], top_k: int | None) -> Trace | ExpertCounts:
    """Traces, or one file of counts."""
    from placement.core.model import layers_named
    from placement.traces.trace import open_trace
    from placement.workload.counts_file import is_counts_file, read_counts

    files = [path for path in paths if is_counts_file(path)]
    if not files:
        if top_k is not None:
            raise OptionError(f"--top-k {top_k} is for files of counts; a trace says it; leave it out")
        try:
            return open_trace(paths)
        except TraceError as error:
            raise _of_an_engine(paths[0]) or error from None
    if len(paths) > 1:
        raise OptionError(f"{files[0]} is a file of counts; it must be given alone; add several up first")
    try:
        counts = read_counts(files[0], top_k)
        if counts.left_out:
            print(f"{files[0]}: {layers_named(counts.left_out)} left out: nothing was counted there", file=sys.stderr)
        return counts
    except InputError as error:
        raise _of_an_engine(files[0]) or error from None


def open_counted(paths: list[str]) -> CountedTrace:
    """One folder of counts."""
    from placement.workload.counts_folder import read_counted

    if len(paths) > 1:
        raise OptionError(
            f"{paths[0]} and {len(paths) - 1} more were given; counts are solved alone: add several up first, "
            f"with `placement traces merge`"
        )
    return read_counted(paths[0])


def _of_an_engine(path: str) -> TraceError | None:
    """What to say of a recording that was not converted; None of anything else."""
    try:
        reader, why = detect(path)
    except (InputError, OSError, ValueError):
        return None
    return TraceError(
        f"{path} is of an engine ({reader.title}: {why}); convert it first: placement traces convert {path} OUT"
    )


def cluster_from_options(
    num_experts: int,
    *,
    file: Path | None,
    nodes: int | None,
    gpus_per_node: int | None,
    slots_per_gpu: int | None,
    redundant_experts: int | None,
) -> Cluster:
    from placement.core.cluster import Cluster
    from placement.documents.cluster_yaml import cluster_from_yaml

    shape = {
        "--nodes": nodes,
        "--gpus-per-node": gpus_per_node,
        "--slots-per-gpu": slots_per_gpu,
        "--redundant-experts": redundant_experts,
    }
    if file is not None:
        given = [name for name, value in shape.items() if value is not None]
        if given:
            raise OptionError(f"{', '.join(given)} and --cluster both describe the cluster; write it in {file}")
        return cluster_from_yaml(file, num_experts)
    if nodes is None:
        raise OptionError("the number of nodes is missing; give --nodes N or --cluster cluster.yaml")
    return Cluster.fit(
        num_experts,
        num_nodes=nodes,
        gpus_per_node=gpus_per_node,
        slots_per_gpu=slots_per_gpu,
        redundant_experts=redundant_experts,
    )


def report_trace(folder: Path, num_tokens: int, json_output: bool) -> None:
    """Say that a trace was written."""
    if json_output:
        print_json({"folder": str(folder), "num_tokens": num_tokens})
    else:
        say_trace(folder, num_tokens)


def say_trace(folder: Path, num_tokens: int) -> None:
    from placement.report.drawing.numbers import plural

    stdout_console().print(
        f"wrote {folder}: {plural(num_tokens, 'token')}", highlight=False, markup=False, soft_wrap=True
    )
