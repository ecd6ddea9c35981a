"""GPUs that clusters are made of, by name: what their makers state, for one GPU and one direction of a link."""

from __future__ import annotations

from dataclasses import dataclass

from placement.errors import ClusterError

REACHED = 0.4  # share of the stated dense bf16 throughput that the products of experts reach


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What a preset says.

    Attributes:
        what: The machine, in words.
        gpus_per_node: GPUs that one NVLink or UB domain joins.
        inter_gbps: Network of one GPU beyond the domain, Gbit/s.
        intra_gbps: Links of one GPU within the domain, Gbit/s.
        peak_tflops: Dense bf16 throughput of one GPU, TFLOP/s.
        memory_gbps: Memory bandwidth of one GPU, Gbit/s.
    """

    what: str
    gpus_per_node: int
    inter_gbps: float
    intra_gbps: float
    peak_tflops: float
    memory_gbps: float

    @property
    def gpu_tflops(self) -> float:
        """What the products of experts reach, TFLOP/s."""
        return round(REACHED * self.peak_tflops)


HARDWARE = {
    "h100": Hardware(
        what="8 x H100 SXM, NVLink 4, a 400 Gbit/s NIC for each GPU",
        gpus_per_node=8,
        inter_gbps=400,
        intra_gbps=3600,
        peak_tflops=989,
        memory_gbps=26_800,
    ),
    "h200": Hardware(
        what="8 x H200 SXM, NVLink 4, a 400 Gbit/s NIC for each GPU",
        gpus_per_node=8,
        inter_gbps=400,
        intra_gbps=3600,
        peak_tflops=989,
        memory_gbps=38_400,
    ),
    "b200": Hardware(
        what="8 x B200, NVLink 5, a 400 Gbit/s NIC for each GPU",
        gpus_per_node=8,
        inter_gbps=400,
        intra_gbps=7200,
        peak_tflops=2250,
        memory_gbps=64_000,
    ),
    "gb200-nvl72": Hardware(
        what="72 GPUs of GB200 in one NVLink domain, a 400 Gbit/s NIC for each GPU",
        gpus_per_node=72,
        inter_gbps=400,
        intra_gbps=7200,
        peak_tflops=2500,
        memory_gbps=64_000,
    ),
    "ascend-910c": Hardware(
        what="8 x Ascend 910C, each of two devices for the engine; figures of a device",
        gpus_per_node=16,
        inter_gbps=200,
        intra_gbps=1568,
        peak_tflops=376,
        memory_gbps=12_800,
    ),
}


def hardware(name: str) -> Hardware:
    """The preset of that name.

    Raises:
        ClusterError: No preset has the name; the message lists those there are.
    """
    if name not in HARDWARE:
        raise ClusterError(f"hardware {name!r} is unknown; choose one of {', '.join(HARDWARE)}")
    return HARDWARE[name]
