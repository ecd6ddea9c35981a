"""`placement apply`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from placement.cli.outputs import output_folder
from placement.cli.shared import Json, Workers, print_json, progress_listener
from placement.errors import OptionError


def apply_command(
    checkpoint: Annotated[
        Path, typer.Argument(help="Folder of a Hugging Face checkpoint; with --inverse one of ranks.")
    ],
    output: Annotated[Path, output_folder("-o", "--output", help="Folder to write; an interrupted one is continued.")],
    placement: Annotated[Path | None, typer.Option("--map", help="Placement file.")] = None,
    inverse: Annotated[
        bool, typer.Option("--inverse", help="Write the checkpoint that the ranks' files are of.")
    ] = False,
    workers: Workers = 1,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
    json_output: Json = False,
) -> None:
    """Cut a checkpoint into one file for each rank, experts in the order of the map's slots."""
    from placement.documents.placement import load_placement
    from placement.runtime.checkpoint import apply_map, restore_checkpoint
    from placement.support.parallel import make_executor

    if (placement is None) != inverse:
        raise OptionError("give --map placement.json to cut a checkpoint, or --inverse to put it together again")
    with make_executor(workers) as executor, progress_listener(quiet) as listener:
        if placement is None:
            files = restore_checkpoint(checkpoint, output, executor=executor, listener=listener)
            document = {"files": [str(path) for path in files]}
            lines = [f"wrote {len(files)} files of the checkpoint to {output}"]
        else:
            applied = apply_map(checkpoint, load_placement(placement)[0], output, executor=executor, listener=listener)
            document = applied.manifest.model_dump(by_alias=True)
            sizes = applied.rank_bytes
            lines = [
                f"wrote {applied.written} files to {output}, kept {applied.kept} that were there; layout "
                f"{applied.manifest.layout}, {len(sizes)} ranks of {min(sizes):,} to {max(sizes):,} bytes"
            ]
            if left := applied.manifest.layers_left:
                lines.append(f"  layers {left} have experts that the map does not place: they are in the common file")
    if json_output:
        print_json(document)
        return
    for line in lines:
        typer.echo(line)
