"""`placement export` and `placement import`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from placement.cli.outputs import output_file
from placement.cli.shared import open_input
from placement.core.model import Model
from placement.errors import MapError, OptionError
from placement.exporters import EXPORTERS, get_exporter, get_importer
from placement.exporters.engines import exporter_for
from placement.support.atomic_files import check_writable, write_together

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MoeLayers = Annotated[
    str | None, typer.Option(help="Absolute numbers of the MoE layers, as 3-60 or 1,3,5-9, if the file has others.")
]
HiddenLayers = Annotated[
    int | None, typer.Option(help="Decoder layers of the model, dense ones included, MTP layers not, if unknown.")
]


def export_command(
    placement: Annotated[Path, typer.Argument(help="Placement file.")],
    output: Annotated[Path, output_file("-o", "--output", help="File to write; its ending tells formats apart.")],
    to: Annotated[
        str | None,
        typer.Option("--to", help=f"Format: {', '.join(EXPORTERS)}. [default: of the engine that the map is for]"),
    ] = None,
    num_hidden_layers: HiddenLayers = None,
    moe_layers: MoeLayers = None,
    mtp_layers: Annotated[int, typer.Option(min=0, help="MTP layers that the engine will use.")] = 0,
    load: Annotated[
        list[str] | None, typer.Option(help="Traces or a file of counts, for engines that place by load (lmdeploy).")
    ] = None,
    model_class: Annotated[
        str, typer.Option(help="Class of the model, for engines that find the map by it (vllm-hygon).")
    ] = "",
) -> None:
    """Write a placement as the file that an engine loads, and beside it how to start the engine."""
    from placement.documents.placement import load_placement
    from placement.exporters.base import ExportOptions
    from placement.exporters.engine_layers import described, layer_numbers

    flags = Path(f"{output}.flags.txt")
    check_writable(flags)
    loaded, file = load_placement(placement)
    to = to or _format_of(placement, file.engine())
    exporter = get_exporter(to)
    if output.suffix not in exporter.suffixes:
        raise OptionError(f"--to {to} writes {' or '.join(exporter.suffixes)}; end the name of {output} so")
    if load and not exporter.takes_load:
        raise OptionError(f"--load is not for --to {to}, which takes the map itself; leave it out")
    load_LE = _load_LE(load, loaded.model) if load else None
    options = ExportOptions(suffix=output.suffix, load_LE=load_LE, model_class=model_class)
    known = described(
        loaded,
        layer_ids=None if moe_layers is None else layer_numbers(moe_layers),
        num_hidden_layers=num_hidden_layers,
        num_mtp_layers=mtp_layers,
    )
    export = exporter.export(known, options)
    hints = [re.sub(r"\bFILE\b", lambda _: str(output), hint) for hint in export.hints]
    choices, solved = exporter.replica_choices, None if file.evaluation is None else file.evaluation.replica_choice
    if loaded.num_redundant and choices and solved is not None and solved not in choices:
        hints.append(
            f"check: the map was solved for --replica-choice {solved}, but {to} chooses copies otherwise; solve with "
            f"{' or '.join(choices)} for figures that hold"
        )
    write_together({output: export.content} | ({flags: "".join(f"{hint}\n" for hint in hints)} if hints else {}))
    typer.echo(f"wrote {output}")
    if hints:
        typer.echo(f"wrote {flags}:")
    for hint in hints:
        typer.echo(f"  {hint}")


def import_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File that an engine loads.")],
    source: Annotated[str, typer.Option("--from", help="Its format, as --to of export.")],
    top_k: Annotated[int, typer.Option(help="Experts that a token visits, which no such file says.")],
    nodes: Annotated[int | None, typer.Option(help="Number of nodes.")] = None,
    output: Annotated[Path, output_file("-o", "--output", help="Placement file to write.")] = Path("placement.json"),
    gpus_per_node: Annotated[int | None, typer.Option(help="GPUs of a node, if the file does not say.")] = None,
    cluster: Annotated[
        Path | None, typer.Option(help="cluster.yaml, instead of the two: it says which rank lies on which node.")
    ] = None,
    num_experts: Annotated[int | None, typer.Option(help="Experts of a layer. [default: as the file has]")] = None,
    num_hidden_layers: HiddenLayers = None,
    moe_layers: MoeLayers = None,
    name: Annotated[str | None, typer.Option(help="Name of the model. [default: that of the file]")] = None,
) -> None:
    """Read the map that an engine loads, check it, and write it as a placement file."""
    import numpy as np

    from placement.core.placement import told_slots
    from placement.documents.cluster_yaml import read_cluster_file
    from placement.documents.placement import PlacementFile
    from placement.exporters.engine_layers import layer_numbers
    from placement.exporters.imports import imported

    importer = get_importer(source)
    if file.suffix not in importer.suffixes:
        raise OptionError(f"--from {source} reads {' or '.join(importer.suffixes)}; {file} ends otherwise")
    where: dict[str, Any] = {"num_nodes": nodes, "gpus_per_node": gpus_per_node}
    if (nodes is None) == (cluster is None) or (nodes is None and gpus_per_node is not None):
        raise OptionError("say where the ranks are: with --nodes and --gpus-per-node, or with --cluster cluster.yaml")
    if cluster is not None:
        told = read_cluster_file(cluster)
        where = {"num_nodes": told.num_nodes, "gpus_per_node": told.gpus(), "rank_hosts": told.hosts()}
    try:
        placement = imported(
            importer.read(file.read_bytes(), file.suffix),
            name=file.stem if name is None else name,
            top_k=top_k,
            **where,
            num_experts=num_experts,
            layer_ids=None if moe_layers is None else layer_numbers(moe_layers),
            num_hidden_layers=num_hidden_layers,
        )
    except OSError as error:
        raise MapError(f"cannot read {file}: {error.strerror}; give a file that an engine loads") from None
    except MapError as error:
        raise MapError(f"{file}: {error}", error.faults) from None
    PlacementFile.of(placement).write(output)
    model, slots = placement.model, told_slots(placement)
    redundant = f"{'up to ' if slots else ''}{placement.num_redundant}"
    typer.echo(
        f"wrote {output}: {model.num_layers} MoE layers ({model.layers_said}) of "
        f"{model.num_experts} experts, {redundant} redundant, on {placement.num_nodes} nodes x "
        f"{placement.gpus_per_node} GPUs"
    )
    if slots:
        typer.echo(f"slots of a GPU differ: {slots}")
    wasted_L = placement.wasted_LP().sum(axis=1)
    if wasted_L.any():
        typer.echo(
            f"{wasted_L.sum():,} slots are wasted, in {np.count_nonzero(wasted_L)} of {model.num_layers} layers: their "
            "GPU holds the expert in another slot too"
        )


def _format_of(path: Path, engine: str | None) -> str:
    if engine is None:
        raise OptionError(f"{path} does not say what engine the map is for; give --to: {', '.join(EXPORTERS)}")
    return exporter_for(engine).name


def _load_LE(paths: list[str], model: Model) -> npt.NDArray[np.int64]:
    from placement.traces.trace import Trace
    from placement.workload.count import count

    traffic = open_input(paths, model.top_k if len(paths) == 1 and Path(paths[0]).is_file() else None)
    if not traffic.model.same_routing(model):
        raise OptionError(
            f"--load {paths[0]} is of another model: its layers, experts or top-k are not those of the map"
        )
    return count(traffic).load_LE if isinstance(traffic, Trace) else traffic.load_LE()
