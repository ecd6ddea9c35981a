"""`placement diff`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from placement.cli.option_texts import ranks_of
from placement.cli.outputs import output_file
from placement.cli.shared import Json, LostRanks, print_json, stdout_console
from placement.support.atomic_files import write_atomic


def diff_command(
    current: Annotated[Path, typer.Argument(help="Placement file in use now.")],
    new: Annotated[Path, typer.Argument(help="Placement file that replaces it; its cluster may have another size.")],
    cluster: Annotated[Path | None, typer.Option(help="cluster.yaml, instead of what the files say.")] = None,
    lost_ranks: LostRanks = None,
    relabel: Annotated[
        Path | None,
        output_file("--relabel", help="File for NEW with alike nodes and GPUs named so that the fewest slots move."),
    ] = None,
    output: Annotated[Path | None, output_file("-o", "--output", help="File for the copies to make.")] = None,
    json_output: Json = False,
) -> None:
    """Show which weights have to be copied to get from one placement to another."""
    from placement.core.migration import migration_plan
    from placement.core.resize import Resize
    from placement.documents.cluster_yaml import cluster_from_yaml
    from placement.documents.document import json_bytes
    from placement.documents.placement import cluster_of_change, load_placement, lost_before, save_placement
    from placement.report.solution.migration_table import migration_table

    old_map, old_file = load_placement(current)
    new_map, new_file = load_placement(new)
    described = cluster_of_change(old_file, new_file)
    if cluster is not None:
        described = cluster_from_yaml(cluster, new_map.model.num_experts)
    lost = lost_before(old_map, new_file) if lost_ranks is None else ranks_of(lost_ranks)
    plan = migration_plan(old_map, new_map, described, lost_ranks=lost)
    if relabel is not None:
        new_map = Resize.of(old_map, described, lost).relabelled(new_map)
        plan = migration_plan(old_map, new_map, described, lost_ranks=lost)
        changed = {"physical_to_logical": new_map.engine_LP().tolist(), "migration": plan.summary()}
        save_placement(relabel, new_file.document() | changed)
    if output is not None:
        write_atomic(output, json_bytes(plan.document(), "copies"))
    if json_output:
        print_json(plan.document())
        return
    console = stdout_console()
    console.print(migration_table(plan))
    written = " and ".join(str(path) for path in (output, relabel) if path is not None)
    if written:
        console.print(f"wrote {written}", highlight=False, markup=False, soft_wrap=True)
