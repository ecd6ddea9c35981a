"""A cluster description put together from known hardware and the sizes of a model."""

from __future__ import annotations

from placement.core.cluster import Cluster
from placement.core.hardware import REACHED, hardware
from placement.documents.cluster_yaml import ClusterFile, cluster_of
from placement.documents.model_config import ModelSizes
from placement.errors import OptionError


def known_cluster(
    name: str,
    *,
    num_nodes: int,
    gpus_per_node: int | None = None,
    redundant_experts: int = 0,
    sizes: ModelSizes | None = None,
) -> tuple[ClusterFile, dict[str, str]]:
    """The description of a cluster of known hardware, for a model of these sizes.

    Args:
        name: One of `placement.core.hardware.HARDWARE`.
        num_nodes: Machines, or NVLink domains.
        gpus_per_node: GPUs of a machine; None: as many as the hardware has.
        redundant_experts: Slots beyond one for each expert.
        sizes: Of the model's experts and tokens; None: left out.

    Returns:
        The description, and by key where a value comes from.

    Raises:
        ClusterError: The hardware is unknown, or numbers make no cluster.
        InfeasibleError: The model's experts do not fit.
        OptionError: `redundant_experts` is negative.
    """
    one = hardware(name)
    gpus = one.gpus_per_node if gpus_per_node is None else gpus_per_node
    plain = Cluster(num_nodes=num_nodes, gpus_per_node=gpus, slots_per_gpu=1)  # refuses what is none
    if redundant_experts < 0:
        raise OptionError(f"--redundant-experts {redundant_experts} must be 0 or more")
    values: dict[str, tuple[float, str]] = {
        "num_nodes": (num_nodes, ""),
        "gpus_per_node": (gpus, one.what),
        "redundant_experts": (redundant_experts, ""),
        "inter_gbps": (one.inter_gbps, "network of a GPU, as stated"),
        "intra_gbps": (one.intra_gbps, "links of a GPU within its node, as stated"),
        "gpu_tflops": (one.gpu_tflops, f"{REACHED:.0%} of the stated {one.peak_tflops:g} in bf16"),
        "memory_gbps": (one.memory_gbps, "memory of a GPU, as stated"),
        "latency_us": (plain.latency_us, "assumed: two exchanges of 15 us, five launches of 2 us"),
    }
    if sizes is not None:
        values |= {
            "expert_bytes": (sizes.expert_bytes, f"3 matrices of {sizes.hidden} x {sizes.width}"),
            "weight_bits": (sizes.weight_bits, "the scales of blocks included"),
            "dispatch_bytes": (sizes.dispatch_bytes, "a token in fp8 with scales"),
            "combine_bytes": (sizes.combine_bytes, "a token in bf16"),
        }
    file = ClusterFile.model_validate({key: value for key, (value, _) in values.items()})
    if sizes is not None:
        cluster_of(file, sizes.num_experts)  # refuses what does not fit
    return file, {key: note for key, (_, note) in values.items()}
