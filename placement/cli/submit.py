"""`placement submit`: a solve on a service, with the same progress bar and the same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from placement.cli.captures import CaptureArguments, open_captures, weighed
from placement.cli.option_groups import ClusterOptions, SearchOptions
from placement.cli.outputs import output_file
from placement.cli.shared import (
    Holdout,
    Json,
    TopK,
    print_json,
    progress_listener,
    stdout_console,
)
from placement.core.choices import HOLDOUT, PARTINGS
from placement.errors import OptionError


def submit_command(
    traces: CaptureArguments,
    server: Annotated[str, typer.Option(metavar="URL", help="Address of a service (`placement serve`).")],
    shape: ClusterOptions,
    search: SearchOptions,
    output: Annotated[Path, output_file("-o", "--output", help="Placement file to write.")] = Path("placement.json"),
    token: Annotated[
        str | None,
        typer.Option(envvar="PLACEMENT_TOKEN", show_envvar=False, help="Token for --server, if it needs one."),
    ] = None,
    holdout: Holdout = HOLDOUT,
    robust: Annotated[
        str | None, typer.Option(help=f"Minimize the worst part of the traffic, parted by {', '.join(PARTINGS)}.")
    ] = None,
    top_k: TopK = None,
    report: Annotated[Path | None, output_file(help="HTML report to write.")] = None,
    json_output: Json = False,
) -> None:
    """Upload TRACES to a service, solve there, and write the answer here."""
    from placement.client import Client
    from placement.pipeline.captures import Captures
    from placement.support.atomic_files import write_together
    from placement.workload.counted import CountedTrace
    from placement.workload.counts_file import is_counts_file

    for path in traces:
        if weighed(path)[1] is not None:
            raise OptionError(f"{path}: a service weighs captures alike; leave the weight out, or solve here")
    source = open_captures(traces, top_k)
    given = [capture.given for capture in source.captures] if isinstance(source, Captures) else [source]
    if any(isinstance(one, CountedTrace) for one in given):
        raise OptionError("a service takes traces and files of counts, not folders of counts; solve this folder here")
    cluster = shape.of(source.model.num_experts)
    client = Client(server, token)
    ids = [client.upload(trace, top_k if is_counts_file(trace) else None) for trace in traces]
    job = client.submit(ids, cluster, search.of(), holdout=holdout, robust=robust)
    with progress_listener(quiet=json_output) as listener:
        try:
            client.wait(job, listener)
        except KeyboardInterrupt:
            client.cancel(job)
            raise
    content = client.placement(job)
    write_together({output: content} | ({} if report is None else {report: client.report(job)}))
    document = json.loads(content)
    if json_output:
        print_json(document)
        return
    _show(document)
    written = " and ".join(str(path) for path in (output, report) if path is not None)
    stdout_console().print(f"wrote {written}", highlight=False, markup=False, soft_wrap=True)


def _show(document: dict[str, Any]) -> None:
    from placement.report.drawing.numbers import number

    evaluation = document["evaluation"]
    part = "train" if evaluation["held_out"] is None else "held_out"
    for name, one in evaluation[part].items():
        imbalance = one["rank_imbalance"]["mean"]
        typer.echo(f"{name:8} {number(one['sends_per_token'])} sends per token, imbalance {number(imbalance)} ({part})")
