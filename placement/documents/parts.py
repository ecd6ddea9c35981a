"""The parts of a placement file, as pydantic models: what schema `expert-placement/1` is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pydantic import ConfigDict, Field

from placement import __version__
from placement.core.cluster import Cluster
from placement.core.model import Model
from placement.core.shape import Shape
from placement.core.topology import Level, Topology
from placement.documents.document import DocumentPart
from placement.documents.figure_parts import SummaryPart


class ModelPart(DocumentPart):
    name: str = Field(description="Name of the model, free text")
    layer_ids: list[int] = Field(description="Absolute index of each MoE layer, ascending")
    num_experts: int = Field(description="Logical experts of a layer (E)")
    top_k: int = Field(description="Experts that a token visits in a layer (K)")
    num_groups: int | None = Field(default=None, description="Groups for group-limited routing, if any")
    num_hidden_layers: int | None = Field(
        default=None, description="Decoder layers, dense ones included, MTP layers not; those are numbered from here on"
    )

    @staticmethod
    def of(model: Model) -> ModelPart:
        """Without what is not known of the model."""
        known = {name: value for name, value in asdict(model).items() if value is not None}
        return ModelPart(**known | {"layer_ids": list(model.layer_ids)})

    def model(self) -> Model:
        """Raises InputError."""
        return Model(**self.model_dump() | {"layer_ids": tuple(self.layer_ids)})


class ClusterPart(DocumentPart):
    num_nodes: int = Field(description="Machines (N)")
    gpus_per_node: int = Field(description="GPUs, that is ranks, of a machine")
    slots_per_gpu: int = Field(description="Slots of a rank in every layer")
    rank_hosts: list[int] | None = Field(
        default=None, description="Node of each of the engine's ranks; null: ranks are numbered node by node"
    )

    @staticmethod
    def of_shape(shape: Shape) -> ClusterPart:
        hosts = {"rank_hosts": list(shape.rank_hosts)} if shape.rank_hosts else {}
        return ClusterPart(**shape.sizes() | hosts)

    def sizes(self) -> dict[str, Any]:
        """What a shape is made of."""
        return {
            "num_nodes": self.num_nodes,
            "gpus_per_node": self.gpus_per_node,
            "slots_per_gpu": self.slots_per_gpu,
            "rank_hosts": tuple(self.rank_hosts or ()),
        }


class LayerPart(DocumentPart):
    layer_id: int = Field(description="Absolute index of the layer")
    solver: str
    status: str = Field(description="optimal (proven), feasible, or limit (stopped by a limit)")
    objective: float = Field(description="Price of sends and of expected rank imbalance, on the training requests")
    bound: float | None = Field(description="Proven lower bound of the objective, or null")
    gap: float | None = Field(description="(objective - bound) / objective, or null")


class WorstMean(DocumentPart):
    worst: float
    mean: float


class TrafficPart(DocumentPart):
    """One part of the traffic; all maps by name."""

    name: str
    objective: dict[str, float] = Field(description="Training objective on this part, mean over layers")
    train: dict[str, SummaryPart]
    held_out: dict[str, SummaryPart] | None = Field(description="null where no request of the part was held out")


class RobustPart(DocumentPart):
    """Of `solve --robust`: every map on every part of the traffic, whose worst the map `robust` minimizes."""

    by: str = Field(description="domain, category, traces or windows:N")
    objective: dict[str, WorstMean] = Field(
        description="By map: the training objective of the worst part, and the mean"
    )
    parts: list[TrafficPart]
    left_out: list[str] = Field(description="Parts with too few tokens or requests")
    bound: float | None = Field(
        default=None, description="No map has a lower training objective on its worst part; null where none was proven"
    )


class TrafficClassPart(DocumentPart):
    """One class of traffic; all maps by name: `own` is the class's, `one` the map in this file."""

    name: str
    file: str = Field(description="Placement file of the class's own map in the folder of --maps-out")
    train: dict[str, SummaryPart]
    held_out: dict[str, SummaryPart] | None = Field(description="null where no request of the class was held out")


class ClassMean(DocumentPart):
    """Means over classes, each weighted by its tokens."""

    sends_per_token: float
    rank_imbalance: float
    cost: float = Field(description="Sends and imbalance at the prices of the objective")


class ClassesPart(DocumentPart):
    """Of `solve --by`: on every class of traffic, its own map beside the map in this file, which was fitted to all."""

    by: str = Field(description="domain, category or phase")
    mean: dict[str, dict[str, ClassMean] | None] = Field(description="On train and held_out requests, by map")
    classes: list[TrafficClassPart]
    left_out: list[str] = Field(description="Classes with too few tokens or requests")
    own_not_better: list[str] = Field(
        description="Classes whose own map costs no less than the map in this file; held-out requests if there are any"
    )


class LevelPart(DocumentPart):
    """A level of the network above nodes."""

    name: str
    nodes: int = Field(description="Consecutive nodes of a block")
    gbps: float = Field(description="Bandwidth of a GPU from block to block, Gbit/s")


class TopologyPart(DocumentPart):
    """How links between nodes differ; the meaning of the keys is that of `placement.core.topology.Topology`."""

    levels: list[LevelPart] = Field(default=[])
    node_gbps: list[float] = Field(default=[])
    rank_cost: list[list[float]] = Field(default=[])

    @staticmethod
    def of(topology: Topology) -> TopologyPart:
        return TopologyPart(
            levels=[LevelPart(**asdict(level)) for level in topology.levels],
            node_gbps=list(topology.node_gbps),
            rank_cost=[list(row) for row in topology.rank_cost],
        )

    def topology(self) -> Topology:
        return Topology(
            levels=tuple(Level(**level.model_dump()) for level in self.levels),
            node_gbps=tuple(self.node_gbps),
            rank_cost=tuple(map(tuple, self.rank_cost)),
        )


class ClusterDetail(ClusterPart):
    """The cluster with all that the cost model knows of it; see docs/cluster.md."""

    inter_gbps: float
    intra_gbps: float
    gpu_tflops: float
    memory_gbps: float = 26_800.0
    copy_us: float = 0.0
    latency_us: float = 40.0
    gpu_speeds: list[float]
    topology: TopologyPart | None = Field(default=None, description="How links between nodes differ; null: they do not")
    expert_bytes: int
    weight_bits: float = 16.0
    dispatch_bytes: int
    combine_bytes: int
    run_time_balance: str = Field(
        default="none", description="Who shares load at run time: none, or the GPUs of a node"
    )

    @staticmethod
    def of(cluster: Cluster) -> ClusterDetail:
        own: dict[str, Any] = {"gpu_speeds": list(cluster.gpu_speeds), "topology": TopologyPart.of(cluster.topology)}
        if cluster.rank_hosts:
            own["rank_hosts"] = list(cluster.rank_hosts)
        return ClusterDetail(**{key: value for key, value in asdict(cluster).items() if key != "rank_hosts"} | own)

    def cluster(self) -> Cluster:
        """Raises ClusterError."""
        rest = {} if self.topology is None else {"topology": self.topology.topology()}
        own = {"gpu_speeds": tuple(self.gpu_speeds), "rank_hosts": tuple(self.rank_hosts or ())}
        return Cluster(**self.model_dump(exclude={"topology"}) | own | rest)


class MigrationPart(DocumentPart):
    """How far the map is from the one that it replaces; the copies themselves are in a file of expert-migration/1."""

    from_map: str = Field(description="SHA-256 of the map that is replaced: its slots as little-endian int32, [L][P]")
    to_map: str = Field(description="The same of the map in this file")
    moves: int = Field(description="Slots whose weights have to come from another rank or the checkpoint")
    moves_by_layer: list[int] = Field(description="The same in each layer")
    reordered: int = Field(description="Further slots whose expert comes from another slot of the same rank")
    bytes_within_nodes: int = Field(description="Weights that are copied between ranks of a node")
    bytes_between_nodes: int = Field(description="Weights that are copied between nodes")
    most_bytes_from_rank: int = Field(description="What the rank that sends most has to send")
    most_bytes_to_rank: int = Field(description="What the rank that receives most has to receive")
    time_ms: float = Field(description="At the cluster's bandwidths, for the busiest rank")
    old_ranks: list[int | None] | None = Field(
        default=None, description="Rank by rank its number in the replaced map, null: it is empty; of resized clusters"
    )
    from_checkpoint: int | None = Field(
        default=None, description="How many of the moves no rank can send any more; of resized clusters"
    )
    bytes_from_checkpoint: int | None = Field(default=None, description="The same in bytes")


class ProvenancePart(DocumentPart):
    """Where the map comes from: the same input, options and version give the same file. Other keys are kept."""

    model_config = ConfigDict(extra="allow")

    version: str | None = None
    seed: int | None = None
    options: dict[str, Any] | None = None
    cluster: ClusterDetail | None = None
    input_hash: str | None = Field(default=None, description="Hash of what was counted of the traces")

    @staticmethod
    def of(options: Mapping[str, Any], cluster: Cluster, input_hash: str) -> ProvenancePart:
        """Of this version. `options` are those of the solve with all that was asked for besides."""
        return ProvenancePart(
            version=__version__,
            seed=options["seed"],
            options=dict(options),
            cluster=ClusterDetail.of(cluster),
            input_hash=input_hash,
        )

    def document(self) -> dict[str, Any]:
        return self.model_dump(exclude_unset=True)
