"""`placement diff`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from placement.cli.outputs import output_file
from placement.cli.shared import Json, print_json, stdout_console
from placement.support.atomic_files import write_atomic


def diff_command(
    current: Annotated[Path, typer.Argument(help="Placement file in use now.")],
    new: Annotated[Path, typer.Argument(help="Placement file that replaces it.")],
    cluster: Annotated[Path | None, typer.Option(help="cluster.yaml, instead of what the files say.")] = None,
    output: Annotated[Path | None, output_file("-o", "--output", help="File for the copies to make.")] = None,
    json_output: Json = False,
) -> None:
    """Show which weights have to be copied to get from one placement to another."""
    from placement.core.cluster import Cluster
    from placement.core.migration import migration_plan
    from placement.documents.cluster_yaml import cluster_from_yaml
    from placement.documents.document import json_bytes
    from placement.documents.placement import load_placement
    from placement.report.solution.migration_table import migration_table

    old_map, old_file = load_placement(current)
    new_map, new_file = load_placement(new)
    described = new_file.described_cluster() or old_file.described_cluster()
    if cluster is not None:
        described = cluster_from_yaml(cluster, new_map.model.num_experts)
    plan = migration_plan(old_map, new_map, described or Cluster(**new_file.cluster.sizes()))
    if output is not None:
        write_atomic(output, json_bytes(plan.document(), "copies"))
    if json_output:
        print_json(plan.document())
        return
    console = stdout_console()
    console.print(migration_table(plan))
    if output is not None:
        console.print(f"wrote {output}", highlight=False, markup=False, soft_wrap=True)
