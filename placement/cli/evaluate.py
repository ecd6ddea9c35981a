"""`placement evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from placement.cli.shared import (
    Json,
    ReplicaChoice,
    Traces,
    Transport,
    WithoutDrafts,
    Workers,
    print_json,
    stdout_console,
)
from placement.core.choices import REPLICA_CHOICE, TRANSPORT


def evaluate_command(
    traces: Traces,
    maps: Annotated[list[Path], typer.Option("--map", help="Placement file; give it again to compare several.")],
    cluster: Annotated[
        Path | None, typer.Option(help="cluster.yaml to measure on. [default: the one in each placement file]")
    ] = None,
    grouping: Annotated[
        Path | None, typer.Option(help="Grouping file: measure with the homes that it gives to the requests.")
    ] = None,
    replica_choice: ReplicaChoice = REPLICA_CHOICE,
    transport: Transport = TRANSPORT,
    without_drafts: WithoutDrafts = False,
    workers: Workers = None,
    json_output: Json = False,
) -> None:
    """Measure placement maps on TRACES, exactly and on every token."""
    from placement.cost.evaluation import evaluate
    from placement.documents.cluster_yaml import cluster_from_yaml
    from placement.documents.placement import load_placement
    from placement.grouping.grouping_file import load_grouping
    from placement.report.drawing.numbers import plural
    from placement.report.solution.solution_tables import evaluation_table
    from placement.support.parallel import make_executor
    from placement.traces.trace import open_trace

    loaded = [load_placement(path) for path in maps]
    trace = open_trace(traces)
    if without_drafts:
        trace = trace.without_drafts()
    home_Q = None
    if grouping is not None:
        file = load_grouping(grouping)
        for placement, _ in loaded:
            file.check_fits(placement)
        home_Q = file.home_Q(trace)
    with make_executor(workers) as executor:
        answers = evaluate(
            trace,
            [placement for placement, _ in loaded],
            cluster=[
                file.described_cluster() if cluster is None else cluster_from_yaml(cluster, trace.model.num_experts)
                for _, file in loaded
            ],
            replica_choice=replica_choice,
            transport=transport,
            home_Q=home_Q,
            executor=executor,
        )
    without_home = None if home_Q is None else int(((home_Q < 0) & (trace.tokens_Q() > 0)).sum())
    if json_output:
        print_json(
            {
                "replica_choice": replica_choice,
                "transport": transport,
                "requests_without_home": without_home,
                "maps": [
                    {"file": str(path), "summary": answer.summary(), "layers": answer.layers()}
                    for path, answer in zip(maps, answers, strict=True)
                ],
            }
        )
        return
    console = stdout_console()
    console.print(evaluation_table([str(path) for path in maps], answers))
    if without_home:
        console.print(
            f"{plural(without_home, 'request')} of {len(trace.requests)} without a home in {grouping}: random homes",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
