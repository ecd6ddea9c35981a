"""`placement cluster`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from placement.cli.outputs import output_file
from placement.core.hardware import HARDWARE
from placement.support.atomic_files import write_atomic


def cluster_command(
    gpu: Annotated[str, typer.Argument(metavar="HARDWARE", help=f"One of {', '.join(HARDWARE)}.")],
    nodes: Annotated[int, typer.Option(help="Machines (or NVLink domains) of the EP group.")],
    gpus_per_node: Annotated[
        int | None, typer.Option(help="GPUs of a machine. [default: as many as the hardware has]")
    ] = None,
    redundant_experts: Annotated[int, typer.Option(help="Slots beyond one for each expert.")] = 0,
    model: Annotated[
        Path | None, typer.Option(help="config.json of the model, which says how large experts and tokens are.")
    ] = None,
    output: Annotated[Path, output_file("-o", "--output", help="Cluster file to write.")] = Path("cluster.yaml"),
) -> None:
    """Write a cluster file for known hardware and a model's config.json, to check and to change by hand."""
    from placement.documents.cluster_yaml import cluster_text
    from placement.documents.known_cluster import known_cluster
    from placement.documents.model_config import read_model_config

    file, notes = known_cluster(
        gpu,
        num_nodes=nodes,
        gpus_per_node=gpus_per_node,
        redundant_experts=redundant_experts,
        sizes=None if model is None else read_model_config(model),
    )
    text = cluster_text(file, notes)
    write_atomic(output, text.encode())
    typer.echo(f"wrote {output}:\n{text}", nl=False)
