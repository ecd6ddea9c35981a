"""The JSON form of a placement: schema `expert-placement/1`, published as placement/schemas/expert-placement-1.json."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from placement.cluster import Cluster
from placement.errors import InputError, MapError
from placement.files import write_atomic
from placement.model import Model
from placement.placement_map import Placement
from placement.topology_json import TopologyPart

SCHEMA = "expert-placement/1"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ModelPart(_Part):
    name: str = Field(description="Name of the model, free text")
    layer_ids: list[int] = Field(description="Absolute index of each MoE layer, ascending")
    num_experts: int = Field(description="Logical experts of a layer (E)")
    top_k: int = Field(description="Experts that a token visits in a layer (K)")
    num_groups: int | None = Field(default=None, description="Groups for group-limited routing, if any")
    num_hidden_layers: int | None = Field(
        default=None, description="Decoder layers, dense ones included, MTP layers not; those are numbered from here on"
    )


class ClusterPart(_Part):
    num_nodes: int = Field(description="Machines (N)")
    gpus_per_node: int = Field(description="GPUs, that is ranks, of a machine; ranks are numbered node by node")
    slots_per_gpu: int = Field(description="Slots of a rank in every layer")


class LayerPart(_Part):
    layer_id: int = Field(description="Absolute index of the layer")
    solver: str
    status: str = Field(description="optimal (proven), feasible, or limit (stopped by a limit)")
    objective: float = Field(description="Price of sends and of expected rank imbalance, on the training requests")
    bound: float | None = Field(description="Proven lower bound of the objective, or null")
    gap: float | None = Field(description="(objective - bound) / objective, or null")


class MeanMax(_Part):
    mean: float
    max: float


class BytesPart(_Part):
    node: float | None = Field(description="One copy a remote node (DeepEP normal, hierarchical all-to-all)")
    rank: float | None = Field(description="One copy a remote rank")
    assignment: float | None = Field(description="One copy a remote assignment (DeepEP low latency)")


class SummaryPart(_Part):
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


class EvaluationPart(_Part):
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


class WorstMean(_Part):
    worst: float
    mean: float


class TrafficPart(_Part):
    """One part of the traffic; all maps by name."""

    name: str
    objective: dict[str, float] = Field(description="Training objective on this part, mean over layers")
    train: dict[str, SummaryPart]
    held_out: dict[str, SummaryPart] | None = Field(description="null where no request of the part was held out")


class RobustPart(_Part):
    """Of `solve --robust`: every map on every part of the traffic, whose worst the map `robust` minimizes."""

    by: str = Field(description="domain, category, traces or windows:N")
    objective: dict[str, WorstMean] = Field(
        description="By map: the training objective of the worst part, and the mean"
    )
    parts: list[TrafficPart]
    left_out: list[str] = Field(description="Parts with too few tokens or requests")


class TrafficClassPart(_Part):
    """One class of traffic; all maps by name: `own` is the class's, `one` the map in this file."""

    name: str
    file: str = Field(description="Placement file of the class's own map in the folder of --maps-out")
    train: dict[str, SummaryPart]
    held_out: dict[str, SummaryPart] | None = Field(description="null where no request of the class was held out")


class ClassMean(_Part):
    """Means over classes, each weighted by its tokens."""

    sends_per_token: float
    rank_imbalance: float
    cost: float = Field(description="Sends and imbalance at the prices of the objective")


class ClassesPart(_Part):
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


class MigrationPart(_Part):
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


class PlacementFile(_Part):
    """An expert placement: which logical expert every slot of every MoE layer holds."""

    schema_: Literal["expert-placement/1"] = Field(alias="schema")
    model: ModelPart
    cluster: ClusterPart
    physical_to_logical: list[list[int]] = Field(
        description="[L][P]: logical expert in slot p of layer l; slot p is on rank p // slots_per_gpu"
    )
    evaluation: EvaluationPart | None = None
    robust: RobustPart | None = None
    classes: ClassesPart | None = None
    layers: list[LayerPart] | None = None
    migration: MigrationPart | None = None
    provenance: ProvenancePart | None = None

    def described_cluster(self) -> Cluster | None:
        """The cluster that the map was made for, if the file describes it. Raises MapError."""
        if self.provenance is None or self.provenance.cluster is None:
            return None
        detail = self.provenance.cluster.model_dump(exclude={"topology"})
        detail["gpu_speeds"] = tuple(detail["gpu_speeds"])
        if self.provenance.cluster.topology is not None:
            detail["topology"] = self.provenance.cluster.topology.topology()
        try:
            return Cluster(**detail)
        except InputError as error:
            raise MapError(f"provenance.cluster: {error}") from None


def cluster_document(cluster: Cluster) -> dict[str, Any]:
    """Plain data of `ClusterDetail`."""
    own = {"gpu_speeds": list(cluster.gpu_speeds), "topology": TopologyPart.of(cluster.topology).model_dump()}
    return asdict(cluster) | own


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the placement file."""
    schema = PlacementFile.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA, **schema}


def placement_document(
    placement: Placement,
    *,
    evaluation: dict[str, Any] | None = None,
    robust: dict[str, Any] | None = None,
    classes: dict[str, Any] | None = None,
    layers: list[dict[str, Any]] | None = None,
    migration: dict[str, Any] | None = None,
    provenance: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Plain data in the order of the schema."""
    model = placement.model
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "model": {
            "name": model.name,
            "layer_ids": list(model.layer_ids),
            "num_experts": model.num_experts,
            "top_k": model.top_k,
        },
        "cluster": {
            "num_nodes": placement.num_nodes,
            "gpus_per_node": placement.gpus_per_node,
            "slots_per_gpu": placement.slots_per_gpu,
        },
        "physical_to_logical": placement.phy2log_LP.tolist(),
    }
    if model.num_groups is not None:
        document["model"]["num_groups"] = model.num_groups
    if model.num_hidden_layers is not None:
        document["model"]["num_hidden_layers"] = model.num_hidden_layers
    parts = {
        "evaluation": evaluation,
        "robust": robust,
        "classes": classes,
        "layers": layers,
        "migration": migration,
        "provenance": provenance,
    }
    return document | {name: part for name, part in parts.items() if part is not None}


def document_bytes(document: dict[str, Any], rows_of: str = "physical_to_logical") -> bytes:
    """One line for each row of `rows_of`, which comes last, so that files can be read and compared by people."""
    body = dict(document)
    rows = ",\n  ".join(json.dumps(row, separators=(",", ":")) for row in body.pop(rows_of))
    text = json.dumps({**body, rows_of: ["@rows@"]}, indent=1, ensure_ascii=False)
    return text.replace('[\n  "@rows@"\n ]', f"[\n  {rows}\n ]").encode(errors="replace") + b"\n"


def save_placement(path: str | Path, document: dict[str, Any]) -> None:
    """Write a document of `placement_document` to `path`, whole or not at all. Raises OutputError."""
    write_atomic(path, document_bytes(document))


def load_placement(path: str | Path) -> tuple[Placement, PlacementFile]:
    """Read and check a placement file. Raises MapError with every fault that was found."""
    path = Path(path)
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise MapError(f"cannot read {path}: {error.strerror}; give a placement file") from None
    except (ValueError, RecursionError) as error:
        raise MapError(f"{path} is not JSON ({error}); give a file of schema {SCHEMA}") from None
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise MapError(f"{path} has schema {schema!r}; {SCHEMA!r} is the one that this version reads")
    try:
        file = PlacementFile.model_validate(document)
    except ValidationError as error:
        faults = tuple(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        more = f"; and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise MapError(f"{path} has {len(faults)} faults: {'; '.join(faults[:20])}{more}", faults) from None
    rows = file.physical_to_logical
    if len({len(row) for row in rows}) > 1:
        lengths = sorted({len(row) for row in rows})
        raise MapError(f"{path}: the layers of physical_to_logical have different lengths {lengths}; all need P slots")
    try:
        model = Model(
            name=file.model.name,
            layer_ids=tuple(file.model.layer_ids),
            num_experts=file.model.num_experts,
            top_k=file.model.top_k,
            num_groups=file.model.num_groups,
            num_hidden_layers=file.model.num_hidden_layers,
        )
        cluster = file.cluster
        for name, value in cluster:
            if value < 1:
                raise MapError(f"cluster.{name}={value} must be at least 1")
        placement = Placement(
            model=model,
            num_nodes=cluster.num_nodes,
            gpus_per_node=cluster.gpus_per_node,
            slots_per_gpu=cluster.slots_per_gpu,
            phy2log_LP=np.array(rows, dtype=np.int64),
        )
    except MapError as error:
        raise MapError(f"{path}: {error}", error.faults) from None
    except (InputError, OverflowError) as error:
        raise MapError(f"{path}: {error}") from None
    return placement, file
