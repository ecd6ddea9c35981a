"""The parts of a placement file, as pydantic models: what schema `expert-placement/1` is made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from placement.documents.topology_json import TopologyPart
from placement.errors import InputError
from placement.support.text_files import parse_json


class Part(BaseModel):
    """No other keys, no conversions."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ModelPart(Part):
    name: str = Field(description="Name of the model, free text")
    layer_ids: list[int] = Field(description="Absolute index of each MoE layer, ascending")
    num_experts: int = Field(description="Logical experts of a layer (E)")
    top_k: int = Field(description="Experts that a token visits in a layer (K)")
    num_groups: int | None = Field(default=None, description="Groups for group-limited routing, if any")
    num_hidden_layers: int | None = Field(
        default=None, description="Decoder layers, dense ones included, MTP layers not; those are numbered from here on"
    )


class ClusterPart(Part):
    num_nodes: int = Field(description="Machines (N)")
    gpus_per_node: int = Field(description="GPUs, that is ranks, of a machine; ranks are numbered node by node")
    slots_per_gpu: int = Field(description="Slots of a rank in every layer")


class LayerPart(Part):
    layer_id: int = Field(description="Absolute index of the layer")
    solver: str
    status: str = Field(description="optimal (proven), feasible, or limit (stopped by a limit)")
    objective: float = Field(description="Price of sends and of expected rank imbalance, on the training requests")
    bound: float | None = Field(description="Proven lower bound of the objective, or null")
    gap: float | None = Field(description="(objective - bound) / objective, or null")


class MeanMax(Part):
    mean: float
    max: float


class BytesPart(Part):
    node: float | None = Field(description="One copy a remote node (DeepEP normal, hierarchical all-to-all)")
    rank: float | None = Field(description="One copy a remote rank")
    assignment: float | None = Field(description="One copy a remote assignment (DeepEP low latency)")


class SummaryPart(Part):
    """What a map costs on a trace; means over layers. Of counts alone, sends, bytes and time are null: unknown."""

    tokens: int
    sends_per_token: float | None = Field(
        default=None, description="What the transport sends, each copy weighed by the cost of its link"
    )
    node_sends_per_token: float | None = Field(description="Copies of a token that leave for distinct remote nodes")
    rank_sends_per_token: float | None = Field(description="Copies for distinct ranks on remote nodes")
    remote_assignments_per_token: float | None = Field(description="Assignments served on remote nodes")
    rank_imbalance: MeanMax = Field(description="Most loaded rank / mean rank, mean and max over layers")
    node_imbalance: MeanMax = Field(description="Most loaded node / mean node, mean and max over layers")
    bytes_per_token: BytesPart = Field(description="Bytes between nodes per token and layer, dispatch and combine")
    step_time_us: float | None = Field(description="Modelled time of all MoE layers of a step")
    sampled_tokens: int | None = Field(
        default=None, description="Tokens on which sends were measured, drawn uniformly; absent where it were all"
    )
    sends_error: float | None = Field(default=None, description="Then the standard error of sends_per_token")

    @model_serializer(mode="wrap")
    def _as_written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what was measured exactly saying that it is no sample."""
        absent = {"sampled_tokens", "sends_error"} - self.model_fields_set
        return {name: value for name, value in write(self).items() if name not in absent}


class EvaluationPart(Part):
    """Summaries by map name (linear, eplb, the result) on the requests that were fitted and on those held out."""

    replica_choice: str
    transport: str = Field(default="node", description="What the engine sends: node, rank, assignment or allgather")
    result: str = Field(description="Name of the map in this file")
    train: dict[str, SummaryPart]
    held_out: dict[str, SummaryPart] | None
    best_split: dict[str, MeanMax] | None = Field(
        default=None,
        description="By train and held_out: rank imbalance of the map in this file if the load of every expert were "
        "split over its slots as well as can be; null where no expert has several",
    )


class WorstMean(Part):
    worst: float
    mean: float


class TrafficPart(Part):
    """One part of the traffic; all maps by name."""

    name: str
    objective: dict[str, float] = Field(description="Training objective on this part, mean over layers")
    train: dict[str, SummaryPart]
    held_out: dict[str, SummaryPart] | None = Field(description="null where no request of the part was held out")


class RobustPart(Part):
    """Of `solve --robust`: every map on every part of the traffic, whose worst the map `robust` minimizes."""

    by: str = Field(description="domain, category, traces or windows:N")
    objective: dict[str, WorstMean] = Field(
        description="By map: the training objective of the worst part, and the mean"
    )
    parts: list[TrafficPart]
    left_out: list[str] = Field(description="Parts with too few tokens or requests")


class TrafficClassPart(Part):
    """One class of traffic; all maps by name: `own` is the class's, `one` the map in this file."""

    name: str
    file: str = Field(description="Placement file of the class's own map in the folder of --maps-out")
    train: dict[str, SummaryPart]
    held_out: dict[str, SummaryPart] | None = Field(description="null where no request of the class was held out")


class ClassMean(Part):
    """Means over classes, each weighted by its tokens."""

    sends_per_token: float
    rank_imbalance: float
    cost: float = Field(description="Sends and imbalance at the prices of the objective")


class ClassesPart(Part):
    """Of `solve --by`: on every class of traffic, its own map beside the map in this file, which was fitted to all."""

    by: str = Field(description="domain, category or phase")
    mean: dict[str, dict[str, ClassMean] | None] = Field(description="On train and held_out requests, by map")
    classes: list[TrafficClassPart]
    left_out: list[str] = Field(description="Classes with too few tokens or requests")
    own_not_better: list[str] = Field(
        description="Classes whose own map costs no less than the map in this file; held-out requests if there are any"
    )


class ClusterDetail(ClusterPart):
    """The cluster with all that the cost model knows of it; see docs/cluster.md."""

    inter_gbps: float
    intra_gbps: float
    gpu_tflops: float
    gpu_speeds: list[float]
    topology: TopologyPart | None = Field(default=None, description="How links between nodes differ; null: they do not")
    expert_bytes: int
    dispatch_bytes: int
    combine_bytes: int


class MigrationPart(Part):
    """How far the map is from the one that it replaces; the copies themselves are in a file of expert-migration/1."""

    from_map: str = Field(description="SHA-256 of the map that is replaced: its slots as little-endian int32, [L][P]")
    to_map: str = Field(description="The same of the map in this file")
    moves: int = Field(description="Slots whose weights have to be copied from another rank")
    moves_by_layer: list[int] = Field(description="The same in each layer")
    reordered: int = Field(description="Further slots whose expert comes from another slot of the same rank")
    bytes_within_nodes: int = Field(description="Weights that are copied between ranks of a node")
    bytes_between_nodes: int = Field(description="Weights that are copied between nodes")
    most_bytes_from_rank: int = Field(description="What the rank that sends most has to send")
    most_bytes_to_rank: int = Field(description="What the rank that receives most has to receive")
    time_ms: float = Field(description="At the cluster's bandwidths, for the busiest rank")


class ProvenancePart(BaseModel):
    """Where the map comes from: the same input, options and version give the same file. Other keys are kept."""

    model_config = ConfigDict(extra="allow", strict=True)

    version: str | None = None
    seed: int | None = None
    options: dict[str, Any] | None = None
    cluster: ClusterDetail | None = None
    input_hash: str | None = Field(default=None, description="Hash of what was counted of the traces")


P = TypeVar("P", bound=Part)


def read_document(
    path: Path, schema: str, part: type[P], what: str, error_of: Callable[[str, tuple[str, ...]], InputError]
) -> P:
    """Read and check a JSON file of one of our schemas; raises what `error_of` makes of a message and its faults."""
    try:
        document = parse_json(path.read_bytes())
    except OSError as error:
        raise error_of(f"cannot read {path}: {error.strerror}; give a {what} file", ()) from None
    except ValueError as error:
        raise error_of(f"{path} is not JSON ({error}); give a file of schema {schema}", ()) from None
    found = document.get("schema") if isinstance(document, dict) else None
    if found != schema:
        raise error_of(f"{path} has schema {found!r}; {schema!r} is the one that this version reads", ())
    try:
        return part.model_validate(document)
    except ValidationError as error:
        faults = tuple(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        more = f"; and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise error_of(f"{path} has {len(faults)} faults: {'; '.join(faults[:20])}{more}", faults) from None
