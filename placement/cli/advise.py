"""`placement advise`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from placement.cli.option_groups import ClusterOptions
from placement.cli.outputs import output_file
from placement.cli.shared import (
    Engine,
    Holdout,
    Json,
    ReplicaChoice,
    Seed,
    TopK,
    Traces,
    Transport,
    Workers,
    open_input,
    print_json,
    progress_listener,
    stdout_console,
)
from placement.core.choices import ADVICE_WORK_LIMIT, MOST_DROPPED
from placement.support.atomic_files import write_atomic


def advise_command(
    traces: Traces,
    shape: ClusterOptions,
    output: Annotated[Path | None, output_file("-o", "--output", help="HTML page to write.")] = None,
    top_k: TopK = None,
    serving: Engine = None,
    transport: Transport = "",
    replica_choice: ReplicaChoice = "",
    kv_cache_gb: Annotated[
        float | None, typer.Option(help="GB of a GPU for the KV cache without redundant experts, to say their share.")
    ] = None,
    step_tokens: Annotated[
        int | None, typer.Option(help="Tokens of a step for each GPU, for capacity factors. [default: 256]")
    ] = None,
    max_dropped: Annotated[
        float, typer.Option(help="Share of the assignments that a capacity factor may drop.")
    ] = MOST_DROPPED,
    holdout: Holdout = 0.2,
    work_limit: Annotated[
        int, typer.Option(help="Moves that a search proposes per layer, for each map.")
    ] = ADVICE_WORK_LIMIT,
    seed: Seed = 0,
    workers: Workers = None,
    json_output: Json = False,
) -> None:
    """Say what placing the experts in TRACES (or a file of counts) brings on a cluster, and with which settings."""
    from placement.analysis.advise import advise
    from placement.report.advice.advice_tables import advice_tables
    from placement.solvers.options import Options

    options = Options(
        engine=serving, transport=transport, replica_choice=replica_choice, seed=seed, work_limit=work_limit
    )
    trace = open_input(traces, top_k)
    cluster = shape.of(trace.model.num_experts)
    with progress_listener(quiet=json_output) as listener:
        advice = advise(
            trace,
            cluster,
            options,
            holdout=holdout,
            step_tokens=step_tokens,
            most_dropped=max_dropped,
            kv_cache_bytes=None if kv_cache_gb is None else kv_cache_gb * 1e9,
            workers=workers,
            listener=listener,
        )
    if output is not None:
        from placement.report.advice.advice_page import advice_html  # jinja2 is loaded only for a page

        write_atomic(output, advice_html(advice))
    if json_output:
        print_json(advice.document())
        return
    console = stdout_console()
    for part in advice_tables(advice):
        console.print(part, highlight=False)
    if output is not None:
        console.print(f"wrote {output}", highlight=False, markup=False, soft_wrap=True)
