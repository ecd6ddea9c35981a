"""`placement traces`: describe, convert, count, split, merge and make traces."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from placement.cli.commands import Commands
from placement.cli.convert import convert_command
from placement.cli.executor import Workers as Executors
from placement.cli.executor import open_executor
from placement.cli.outputs import new_folder, output_file, output_folder
from placement.cli.panels import PanelGroup
from placement.cli.shared import (
    Json,
    Seed,
    TopK,
    Traces,
    WithoutDrafts,
    Workers,
    open_input,
    print_json,
    progress_listener,
    report_trace,
    say_trace,
    stdout_console,
)
from placement.cli.synth import synth_command
from placement.core.choices import HOLDOUT, STUDIES
from placement.errors import OptionError
from placement.support.atomic_files import write_atomic
from placement.support.progress import Progress

if TYPE_CHECKING:
    from placement.workload.counted import CountedTrace

app = Commands(cls=PanelGroup, help="Describe, convert, count, split, merge and make traces.", no_args_is_help=True)
app.command("convert")(convert_command)
app.command("synth")(synth_command)

Output = Annotated[Path, new_folder("-o", "--output", help="Folder to make; nothing is overwritten.")]


STUDY = "Study"


@app.command("info")
def info_command(
    traces: Traces,
    without_drafts: WithoutDrafts = False,
    layers: Annotated[bool, typer.Option("--layers", help="Also show one row for each layer.")] = False,
    study: Annotated[
        bool,
        typer.Option(
            "--study", help="Also study what grouping of requests and maps by domain can gain.", rich_help_panel=STUDY
        ),
    ] = False,
    report: Annotated[
        Path | None, output_file("--report", help="HTML page of the study to write.", panel=STUDY)
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            help=f"What requests are told apart by: {', '.join(STUDIES)}. [default: domain]", rich_help_panel=STUDY
        ),
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option(help="Machines of the EP group. [default: 4, or as many as experts]", rich_help_panel=STUDY),
    ] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option(help="GPUs of a machine. [default: 1]", rich_help_panel=STUDY)
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the folds in which domains are told held out. [default: 0]", rich_help_panel=STUDY),
    ] = None,
    top_k: TopK = None,
    workers: Workers = None,
    json_output: Json = False,
) -> None:
    """Say what TRACES (or a file of counts) hold, how their routing looks, and what they lack; study them."""
    from placement.analysis.info import StudyOptions, describe
    from placement.report.trace.trace_tables import trace_tables
    from placement.support.parallel import make_executor
    from placement.workload.counts_file import ExpertCounts

    given = {"by": by, "num_nodes": nodes, "gpus_per_node": gpus_per_node, "seed": seed}
    asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    wanted = study or report is not None
    if asked and not wanted:
        option = {"num_nodes": "nodes"}.get(next(iter(asked)), next(iter(asked))).replace("_", "-")
        raise OptionError(f"--{option} is of the study; add --study, or --report FILE.html")
    source = open_input(traces, top_k)
    if without_drafts:
        if isinstance(source, ExpertCounts):
            raise OptionError("--without-drafts is for traces; counts do not say which tokens are drafts; leave it out")
        source = source.without_drafts()
    total, done = 0 if isinstance(source, ExpertCounts) else source.num_tokens_stored, 0
    with progress_listener(quiet=json_output) as listener, make_executor(workers) as executor:

        def count_done(tokens: int) -> None:
            nonlocal done
            done += tokens
            listener(Progress(stage="count", done=done, total=total))

        info = describe(source, executor, count_done, study=StudyOptions(**asked) if wanted else None)
    if report is not None:
        from placement.report.trace.trace_page import trace_html  # jinja2 is loaded only for a page

        write_atomic(report, trace_html(info))
    if json_output:
        print_json(info.as_dict())
        return
    console = stdout_console()
    for part in trace_tables(info, by_layer=layers):
        console.print(part, highlight=False)
    if report is not None:
        console.print(f"wrote {report}", highlight=False, markup=False, soft_wrap=True)


@app.command("split")
def split_command(
    traces: Traces,
    output: Output,
    holdout: Annotated[float, typer.Option(help="Share of the requests that is held out.")] = 0.2,
    seed: Seed = 0,
    json_output: Json = False,
) -> None:
    """Split TRACES by request into OUTPUT/train and OUTPUT/held-out."""
    from placement.traces.split import split_requests
    from placement.traces.trace import open_trace
    from placement.traces.write import write_split

    train, held_out = split_requests(open_trace(traces), holdout, seed)
    sizes = dict(zip(("train", "held-out"), write_split(train, held_out, output), strict=True))
    if json_output:
        print_json({name: {"folder": str(output / name), "num_tokens": size} for name, size in sizes.items()})
        return
    for name, size in sizes.items():
        say_trace(output / name, size)


@app.command("count")
def count_command(
    traces: Traces,
    output: Annotated[
        Path, output_folder("-o", "--output", help="Folder of counts to make; one that was begun is gone on with.")
    ],
    part: Annotated[
        str, typer.Option(help="Count part I of N of the shards, as 3/8; `placement traces merge` puts them together.")
    ] = "1/1",
    holdout: Annotated[float, typer.Option(help="Share of the requests that is held out.")] = HOLDOUT,
    seed: Seed = 0,
    workers: Executors = None,
    json_output: Json = False,
) -> None:
    """Count TRACES once, in bounded memory, into a folder that `placement solve` takes instead of them."""
    from placement.support.parallel import make_executor
    from placement.traces.trace import open_trace
    from placement.workload.counts_folder import count_to_folder, parse_part

    number, of = parse_part(part)
    trace = open_trace(traces)
    done = known = 0
    with (
        open_executor(workers) as (far, threads),
        far or make_executor(threads) as executor,
        progress_listener(quiet=json_output) as listener,
    ):

        def count_done(tokens: int, counted_now: bool) -> None:
            nonlocal done, known
            done += tokens
            known += 0 if counted_now else tokens
            listener(Progress(stage="count", done=done, total=max(trace.num_tokens_stored // of, done)))

        counted = count_to_folder(
            trace, output, holdout=holdout, seed=seed, part=(number, of), executor=executor, progress=count_done
        )
        listener(Progress(stage="count", done=done, total=done))
    _report_counts(output, counted, known, json_output)


@app.command("merge")
def merge_command(
    traces: Traces, output: Output, without_drafts: WithoutDrafts = False, json_output: Json = False
) -> None:
    """Write all tokens of TRACES to one folder with shards of even size; or add up folders of counts."""
    from placement.traces.trace import open_trace
    from placement.traces.write import merge_traces
    from placement.workload.counts_folder import is_counts_folder, merge_counted

    if any(is_counts_folder(path) for path in traces):
        if without_drafts:
            raise OptionError("--without-drafts is for traces; counts do not say which tokens are drafts; leave it out")
        _report_counts(output, merge_counted(traces, output), 0, json_output)
        return
    trace = open_trace(traces)
    num_tokens = merge_traces(trace.without_drafts() if without_drafts else trace, output)
    report_trace(output, num_tokens, json_output)


@app.command("scrub")
def scrub_command(traces: Traces, output: Output, json_output: Json = False) -> None:
    """Write TRACES to one folder without ids of tokens and prompts: the routing stays, the texts are gone."""
    from placement.traces.trace import open_trace
    from placement.traces.write import merge_traces

    report_trace(output, merge_traces(open_trace(traces), output, scrub=True), json_output)


def _report_counts(output: Path, counted: CountedTrace, known: int, json_output: bool) -> None:
    from placement.report.drawing.numbers import plural

    sizes = [side.num_tokens for side in counted.sides]
    if json_output:
        names = ("num_tokens_train", "num_tokens_held_out")
        print_json({"folder": str(output), "num_tokens": sum(sizes), **dict(zip(names, sizes, strict=False))})
        return
    before = f", {known:,} of them counted before" if known else ""
    held_out = f"; {sizes[1]:,} are held out" if len(sizes) > 1 else ""
    stdout_console().print(
        f"wrote {output}: counts of {plural(sum(sizes), 'token')}{before}{held_out}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
