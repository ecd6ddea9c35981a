"""`cluster.yaml`: the description of a cluster on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError, field_validator

from placement.core.cluster import SPEEDS, TIMES, Cluster
from placement.documents.document import DocumentPart, fault_list
from placement.documents.parts import TopologyPart
from placement.errors import ClusterError
from placement.support.text_files import parse_yaml

MOST_FAULTS = 8  # that a message names


class ClusterFile(DocumentPart):
    """Keys of `cluster.yaml`; the meaning and defaults are those of `placement.Cluster`."""

    num_nodes: int
    gpus_per_node: int | None = None
    rank_hosts: tuple[int | str, ...] | list[int | str] | None = None
    slots_per_gpu: int | None = None
    redundant_experts: int | None = None
    inter_gbps: float | None = None
    intra_gbps: float | None = None
    gpu_tflops: float | None = None
    memory_gbps: float | None = None
    copy_us: float | None = None
    latency_us: float | None = None
    gpu_speeds: tuple[float, ...] | list[float] | None = None
    topology: TopologyPart | None = None
    expert_bytes: int | None = None
    weight_bits: float | None = None
    dispatch_bytes: int | None = None
    combine_bytes: int | None = None
    run_time_balance: str | None = None

    @field_validator("gpus_per_node", mode="before")
    @classmethod
    def _one_number(cls, value: object) -> object:
        if isinstance(value, list):
            raise ValueError(
                f"{str(value)[:40]} are several numbers; nodes of unequal size are not modelled: give one number, or "
                "num_nodes as many as GPUs, gpus_per_node 1 and topology.rank_cost"
            )
        return value

    def hosts(self) -> tuple[int, ...]:
        """Node of each of the engine's ranks. Names are numbered in the order of their first ranks."""
        hosts = self.rank_hosts or ()
        if any(isinstance(host, str) for host in hosts):
            names = list(dict.fromkeys(map(str, hosts)))
            return tuple(names.index(str(host)) for host in hosts)
        return tuple(map(int, hosts))

    def gpus(self) -> int | None:
        """`gpus_per_node`, or as many as `rank_hosts` has."""
        return self.gpus_per_node or len(self.rank_hosts or ()) // max(self.num_nodes, 1) or None

    def with_speeds(self, cluster: Cluster) -> ClusterFile:
        """The same description with what the cluster does: its speeds and its links."""
        changed: dict[str, object] = {key: float(getattr(cluster, key)) for key in SPEEDS + TIMES}
        if self.topology is not None:
            changed["topology"] = TopologyPart.of(cluster.topology)
        return self.model_copy(update=changed)


def cluster_from_yaml(path: str | Path, num_experts: int) -> Cluster:
    """Read a cluster description (see docs/cluster.md); what it leaves out is filled in as by `Cluster.fit`.

    Raises ClusterError with every fault in one line, InfeasibleError if the experts do not fit.
    """
    file = read_cluster_file(path)
    try:
        return cluster_of(file, num_experts)
    except ClusterError as error:
        raise ClusterError(f"{path}: {error}") from None


def read_cluster_file(path: str | Path) -> ClusterFile:
    """What a cluster description says. Raises ClusterError with every fault in one line."""
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise ClusterError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ClusterError(f"{path} is not text; write YAML with at least num_nodes") from None
    try:
        document = parse_yaml(text)
    except ValueError as error:
        raise ClusterError(f"{path} is not YAML: {error}") from None
    try:
        return ClusterFile.model_validate(document)
    except ValidationError as error:
        faults = "; ".join(fault_list(error)[:MOST_FAULTS])
        raise ClusterError(f"{path}: {faults}; allowed keys: {', '.join(ClusterFile.model_fields)}") from None


def cluster_text(file: ClusterFile, notes: Mapping[str, str]) -> str:
    """The description as it is written to disk: a line for each key that is given, the note on it as a comment."""
    import yaml

    lines = []
    for key, value in file.model_dump(exclude_none=True).items():
        short = float(f"{value:.6g}") if isinstance(value, float) else value
        whole = int(short) if isinstance(short, float) and short.is_integer() else short
        said = yaml.safe_dump(whole, default_flow_style=True, width=10**9, sort_keys=False).split("\n")[0]
        lines.append(f"{key}: {said}{f' # {notes[key]}' if notes.get(key) else ''}\n")
    return "".join(lines)


def cluster_of(file: ClusterFile, num_experts: int) -> Cluster:
    """The cluster that is described, for so many experts. Raises ClusterError, InfeasibleError."""
    fitted = Cluster.fit(
        num_experts,
        num_nodes=file.num_nodes,
        gpus_per_node=file.gpus(),
        slots_per_gpu=file.slots_per_gpu,
        redundant_experts=file.redundant_experts,
    )
    shape = {"num_nodes", "gpus_per_node", "slots_per_gpu", "redundant_experts", "rank_hosts"}
    rest = {key: value for key, value in file.model_dump(exclude_none=True).items() if key not in shape}
    if "gpu_speeds" in rest:
        rest["gpu_speeds"] = tuple(rest["gpu_speeds"])
    if file.topology is not None:
        rest["topology"] = file.topology.topology()
    return replace(fitted, rank_hosts=file.hosts(), **rest)
