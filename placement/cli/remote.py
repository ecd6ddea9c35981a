"""`placement solve --server`: the same job on a service."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from placement.cli.shared import print_json, progress_listener
from placement.client import Client
from placement.core.cluster import Cluster
from placement.errors import OptionError
from placement.report.drawing.numbers import number
from placement.solvers.options import Options
from placement.support.atomic_files import write_atomic
from placement.workload.counts_file import is_counts_file


def solve_remotely(
    url: str,
    token: str | None,
    traces: Sequence[str],
    cluster: Cluster,
    options: Options,
    *,
    top_k: int | None,
    holdout: float,
    robust: str | None,
    output: Path,
    report: Path | None,
    json_output: bool,
) -> None:
    """Upload, solve there with the same progress bar, and write the same files. Raises PlacementError."""
    client = Client(url, token)
    ids = [client.upload(trace, top_k if is_counts_file(trace) else None) for trace in traces]
    job = client.submit(ids, cluster, options, holdout=holdout, robust=robust)
    with progress_listener(quiet=json_output) as listener:
        try:
            client.wait(job, listener)
        except KeyboardInterrupt:
            client.cancel(job)
            raise
    content = client.placement(job)
    write_atomic(output, content)
    if report is not None:
        write_atomic(report, client.report(job))
    document = json.loads(content)
    if json_output:
        print_json(document)
        return
    _show(document)
    typer.echo(f"wrote {output}" + ("" if report is None else f" and {report}"))


def check_remote(given: dict[str, object]) -> None:
    """Raise OptionError for options that the service does not take from here."""
    names = [name for name, value in given.items() if value]
    if names:
        raise OptionError(
            f"--server and {' and '.join(names)} do not go together; leave one out, or use /v1 of the service"
        )


def _show(document: dict[str, Any]) -> None:
    evaluation = document["evaluation"]
    part = "train" if evaluation["held_out"] is None else "held_out"
    for name, one in evaluation[part].items():
        imbalance = one["rank_imbalance"]["mean"]
        typer.echo(f"{name:8} {number(one['sends_per_token'])} sends per token, imbalance {number(imbalance)} ({part})")
