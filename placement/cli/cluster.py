"""`placement cluster`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from placement.cli.outputs import output_file
from placement.core.hardware import HARDWARE, REACHED, hardware
from placement.errors import OptionError
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
    from placement.core.cluster import Cluster
    from placement.documents.cluster_yaml import ClusterFile, cluster_of, cluster_text
    from placement.documents.model_config import read_model_config

    one = hardware(gpu)
    gpus = one.gpus_per_node if gpus_per_node is None else gpus_per_node
    plain = Cluster(num_nodes=nodes, gpus_per_node=gpus, slots_per_gpu=1)  # refuses what is none
    if redundant_experts < 0:
        raise OptionError(f"--redundant-experts {redundant_experts} must be 0 or more")
    values: dict[str, tuple[float, str]] = {
        "num_nodes": (nodes, ""),
        "gpus_per_node": (gpus, one.what),
        "redundant_experts": (redundant_experts, ""),
        "inter_gbps": (one.inter_gbps, "network of a GPU, as stated"),
        "intra_gbps": (one.intra_gbps, "links of a GPU within its node, as stated"),
        "gpu_tflops": (one.gpu_tflops, f"{REACHED:.0%} of the stated {one.peak_tflops:g} in bf16"),
        "memory_gbps": (one.memory_gbps, "memory of a GPU, as stated"),
        "latency_us": (plain.latency_us, "assumed: two exchanges of 15 us, five launches of 2 us"),
    }
    if model is not None:
        sizes = read_model_config(model)
        values |= {
            "expert_bytes": (sizes.expert_bytes, f"3 matrices of {sizes.hidden} x {sizes.width}"),
            "weight_bits": (sizes.weight_bits, "the scales of blocks included"),
            "dispatch_bytes": (sizes.dispatch_bytes, "a token in fp8 with scales"),
            "combine_bytes": (sizes.combine_bytes, "a token in bf16"),
        }
    file = ClusterFile.model_validate({key: value for key, (value, _) in values.items()})
    if model is not None:
        cluster_of(file, sizes.num_experts)  # refuses what does not fit, before a file is written
    text = cluster_text(file, {key: note for key, (_, note) in values.items()})
    write_atomic(output, text.encode())
    typer.echo(f"wrote {output}:\n{text}", nl=False)
