"""`placement calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from placement.cli.outputs import output_file
from placement.cli.shared import Json, Seed, Traces, Workers, print_json, stdout_console


def calibrate_command(
    times: Annotated[Path, typer.Argument(help="CSV of measured steps: map, step_tokens, time_us and maybe phase.")],
    traces: Traces,
    cluster: Annotated[Path, typer.Option(help="cluster.yaml: sizes, and the speeds that times do not tell.")],
    output: Annotated[Path, output_file("-o", "--output", help="Cluster file to write.")] = Path("calibrated.yaml"),
    seed: Seed = 0,
    workers: Workers = None,
    json_output: Json = False,
) -> None:
    """Fit the speeds of a cluster file to the TIMES that the MoE layers of steps took, by replaying TRACES."""
    from placement.cost.calibration.calibrate import calibrate
    from placement.cost.calibration.measured import read_measured
    from placement.documents.cluster_yaml import cluster_of, cluster_text, read_cluster_file
    from placement.report.steps.calibration_table import calibration_document, calibration_tables
    from placement.support.atomic_files import write_atomic
    from placement.support.parallel import make_executor
    from placement.traces.trace import open_trace

    rows, file, trace = read_measured(times), read_cluster_file(cluster), open_trace(traces)
    with make_executor(workers) as executor:
        answer = calibrate(rows, trace, cluster_of(file, trace.model.num_experts), seed=seed, executor=executor)
    notes = {key: f"fitted to {len(rows)} measured steps" for key in answer.fitted} | {
        key: f"kept: {why}" for key, why in answer.kept.items()
    }
    write_atomic(output, cluster_text(file.with_speeds(answer.cluster), notes).encode())
    if json_output:
        print_json(calibration_document(answer))
        return
    console = stdout_console()
    for table in calibration_tables(answer):
        console.print(table)
    console.print(f"wrote {output}", highlight=False, markup=False, soft_wrap=True)
