"""The JSON form of a placement: schema `expert-placement/1`.

The JSON Schema is published as placement/documents/schemas/expert-placement-1.json.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from placement.core.cluster import Cluster
from placement.core.model import Model
from placement.core.placement import Placement
from placement.documents.placement_parts import (
    ClassesPart,
    ClusterPart,
    EvaluationPart,
    LayerPart,
    MigrationPart,
    ModelPart,
    Part,
    ProvenancePart,
    RobustPart,
    read_document,
)
from placement.documents.topology_json import TopologyPart
from placement.errors import InputError, MapError
from placement.support.atomic_files import write_atomic

SCHEMA = "expert-placement/1"


class PlacementFile(Part):
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
    file = read_document(path, SCHEMA, PlacementFile, "placement", MapError)
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
