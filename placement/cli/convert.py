"""`placement traces convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from placement.cli.outputs import checked_by
from placement.cli.shared import Json, print_json, stdout_console
from placement.errors import printable
from placement.readers import AUTO, READERS


def _check_output(path: Path) -> None:
    from placement.readers.convert import check_output

    check_output(path)


def convert_command(
    recording: Annotated[Path, typer.Argument(metavar="IN", help="File or folder that an engine recorded.")],
    output: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="Folder to make; of counts without tokens, a file that ends in .npz.",
            callback=checked_by(_check_output),
        ),
    ],
    reader: Annotated[str, typer.Option("--from", help=f"Format of IN: {AUTO} or one of {', '.join(READERS)}.")] = AUTO,
    experts: Annotated[int | None, typer.Option(help="Experts of a layer, where IN does not say it.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Experts that a token visits, where IN does not say it.")] = None,
    layer_ids: Annotated[
        str | None, typer.Option(help="Absolute index of each layer of IN, such as 3-60, where IN does not say it.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model. [default: that of IN]")] = None,
    keep_unwritten: Annotated[
        bool,
        typer.Option("--keep-unwritten", help="Keep rows and places that look as if nobody had written to them."),
    ] = False,
    json_output: Json = False,
) -> None:
    """Make expert-trace/1, or a file of counts, of what an engine recorded."""
    from placement.readers.base import ReadOptions, parse_ids
    from placement.readers.convert import convert
    from placement.report.drawing.numbers import plural

    ids = None if layer_ids is None else parse_ids(layer_ids)
    options = ReadOptions(model=model, num_experts=experts, top_k=top_k, layer_ids=ids, keep_unwritten=keep_unwritten)
    done = convert(recording, output, reader=reader, options=options)
    if json_output:
        print_json(
            {
                "output": str(output),
                "reader": done.reader,
                "reason": done.reason,
                "model": done.model.name,
                "layer_ids": list(done.model.layer_ids),
                "num_experts": done.model.num_experts,
                "top_k": done.model.top_k,
                "num_tokens": done.num_tokens,
                "num_requests": done.num_requests,
                "notes": list(done.notes),
            }
        )
        return
    what = "rows of counts" if done.num_tokens is None else f"{plural(done.num_tokens, 'token')}, requests"
    lines = [
        f"read {recording} as {done.reader}: {done.reason}",
        f"wrote {output}: {what}: {done.num_requests:,}; {plural(done.model.num_layers, 'layer')} "
        f"({done.model.layers_said}) of {plural(done.model.num_experts, 'expert')}, top-{done.model.top_k}",
        *(f"note: {note}" for note in done.notes),
    ]
    for line in lines:
        stdout_console().print(printable(line), highlight=False, markup=False, soft_wrap=True)
