"""`placement evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from placement.cli.outputs import output_file
from placement.cli.shared import (
    CHOICE_SAID,
    TRANSPORT_SAID,
    Json,
    Seed,
    Traces,
    WithoutDrafts,
    Workers,
    print_json,
    stdout_console,
)
from placement.core.choices import REPLICA_CHOICE, TRANSPORT
from placement.errors import OptionError
from placement.support.atomic_files import write_atomic

if TYPE_CHECKING:
    from placement.documents.placement import PlacementFile


def evaluate_command(
    traces: Traces,
    maps: Annotated[list[Path], typer.Option("--map", help="Placement file; give it again to compare several.")],
    cluster: Annotated[
        Path | None, typer.Option(help="cluster.yaml to measure on. [default: the one in each placement file]")
    ] = None,
    grouping: Annotated[
        Path | None, typer.Option(help="Grouping file: measure with the homes that it gives to the requests.")
    ] = None,
    replica_choice: Annotated[
        str,
        typer.Option(
            help=f"{CHOICE_SAID} [default: as the maps were solved for, else {REPLICA_CHOICE}]", show_default=False
        ),
    ] = "",
    transport: Annotated[
        str,
        typer.Option(
            help=f"{TRANSPORT_SAID} [default: as the maps were solved for, else {TRANSPORT}]", show_default=False
        ),
    ] = "",
    without_drafts: WithoutDrafts = False,
    step_tokens: Annotated[
        str | None,
        typer.Option(
            metavar="SIZES", help="Measure also in steps of so many tokens for each GPU, such as 16,64,256,1024."
        ),
    ] = None,
    report: Annotated[Path | None, output_file("--report", help="HTML report to write.")] = None,
    seed: Seed = 0,
    workers: Workers = None,
    json_output: Json = False,
) -> None:
    """Measure placement maps on TRACES, exactly and on every token."""
    from placement.cost.evaluation import evaluate
    from placement.cost.steps.given import parse_step_tokens
    from placement.cost.steps.replay import evaluate_steps
    from placement.documents.cluster_yaml import cluster_from_yaml
    from placement.documents.placement import load_placement
    from placement.grouping.grouping_file import load_grouping
    from placement.report.drawing.numbers import plural
    from placement.report.solution.solution_tables import evaluation_table
    from placement.report.steps.step_table import step_table
    from placement.support.parallel import make_executor
    from placement.traces.trace import open_trace

    sizes = None if step_tokens is None else parse_step_tokens(step_tokens)
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
    files = [file for _, file in loaded]
    replica_choice = replica_choice or _solved_for(files, "replica_choice", REPLICA_CHOICE)
    transport = transport or _solved_for(files, "transport", TRANSPORT)
    placements = [placement for placement, _ in loaded]
    clusters = [
        file.described_cluster() if cluster is None else cluster_from_yaml(cluster, trace.model.num_experts)
        for _, file in loaded
    ]
    rule: dict[str, Any] = {"replica_choice": replica_choice, "transport": transport, "home_Q": home_Q}
    with make_executor(workers) as executor:
        answers = evaluate(trace, placements, cluster=clusters, **rule, executor=executor)
        steps = None
        if sizes is not None:
            steps = evaluate_steps(
                trace, placements, step_tokens=sizes, cluster=clusters, **rule, seed=seed, executor=executor
            )
    if report is not None:
        from placement.report.evaluation.evaluation_page import evaluation_html  # jinja2 is loaded only for a page

        said = f"replica choice {replica_choice}, transport {transport}"
        write_atomic(report, evaluation_html(trace.model, list(map(str, maps)), answers, rule=said, steps=steps))
    without_home = None if home_Q is None else int(((home_Q < 0) & (trace.tokens_Q() > 0)).sum())
    if json_output:
        print_json(
            {
                "replica_choice": replica_choice,
                "transport": transport,
                "requests_without_home": without_home,
                "maps": [
                    {"file": str(path), "summary": answer.summary(), "layers": answer.layers()}
                    | ({} if steps is None else {"steps": [row.document() for row in steps[number]]})
                    for number, (path, answer) in enumerate(zip(maps, answers, strict=True))
                ],
            }
        )
        return
    console = stdout_console()
    console.print(evaluation_table([str(path) for path in maps], answers))
    if steps is not None:
        console.print(step_table([str(path) for path in maps], steps))
    if (replica_choice, transport) != (REPLICA_CHOICE, TRANSPORT):
        console.print(f"replica choice {replica_choice}, transport {transport}", highlight=False)
    if without_home:
        console.print(
            f"{plural(without_home, 'request')} of {len(trace.requests)} without a home in {grouping}: random homes",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if report is not None:
        console.print(f"wrote {report}", highlight=False, markup=False, soft_wrap=True)


def _solved_for(files: Sequence[PlacementFile], what: str, default: str) -> str:
    """What the files say that their maps were solved for; a file of a map alone says nothing."""
    said = sorted({getattr(file.evaluation, what) for file in files if file.evaluation is not None})
    if len(said) > 1:
        option = f"--{what.replace('_', '-')}"
        raise OptionError(
            f"the maps were solved for different rules: {', '.join(said)}; give {option}, by which all count"
        )
    return said[0] if said else default
