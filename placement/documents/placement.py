"""The JSON form of a placement: schema `expert-placement/1`.

The JSON Schema is published as placement/documents/schemas/expert-placement-1.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from placement.core.cluster import Cluster
from placement.core.migration import map_digest
from placement.core.placement import Placement
from placement.core.shape import Shape
from placement.core.topology import EVEN
from placement.documents.document import Document
from placement.documents.figure_parts import EvaluationPart, EvidencePart
from placement.documents.parts import (
    ClassesPart,
    ClusterPart,
    LayerPart,
    MigrationPart,
    ModelPart,
    ProvenancePart,
    RobustPart,
)
from placement.errors import InputError, MapError
from placement.support.atomic_files import write_atomic


class PlacementFile(Document):
    """An expert placement: which logical expert every slot of every MoE layer holds."""

    SCHEMA = "expert-placement/1"
    ERROR = MapError
    MEND = "give a placement file"
    ROWS = ("physical_to_logical",)

    schema_: Literal["expert-placement/1"] = Field(alias="schema")
    model: ModelPart
    cluster: ClusterPart
    physical_to_logical: list[list[int]] = Field(
        description="[L][P]: logical expert in slot p of layer l; slot p is on the engine's rank p // slots_per_gpu; "
        "-1 in the last slots of every rank: GPUs have fewer in this layer"
    )
    evaluation: EvaluationPart | None = None
    evidence: EvidencePart | None = None
    robust: RobustPart | None = None
    classes: ClassesPart | None = None
    layers: list[LayerPart] | None = None
    migration: MigrationPart | None = None
    provenance: ProvenancePart | None = None

    @staticmethod
    def of(placement: Placement, **parts: Any) -> PlacementFile:
        """The file of a placement; `parts` are the file's other parts by name, None: the file has none."""
        return PlacementFile(
            schema="expert-placement/1",
            model=ModelPart.of(placement.model),
            cluster=ClusterPart.of_shape(placement),
            physical_to_logical=placement.engine_LP().tolist(),
            **{name: part for name, part in parts.items() if part is not None},
        )

    def placement(self) -> Placement:
        """Raises InputError."""
        try:
            return self._placement()
        except OverflowError:
            raise MapError("a number is beyond 64 bits; slots hold experts 0 to num_experts - 1, or -1") from None

    def _placement(self) -> Placement:
        rows, cluster = self.physical_to_logical, self.cluster
        lengths = sorted({len(row) for row in rows})
        if len(lengths) > 1:
            raise MapError(f"the layers of physical_to_logical have different lengths {lengths}; all need P slots")
        model = self.model.model()
        sizes = cluster.sizes()
        shape = Shape(**sizes)
        for name, value in zip(("num_nodes", "gpus_per_node", "slots_per_gpu"), shape.shape, strict=True):
            if value < 1:
                raise MapError(f"cluster.{name}={value} must be at least 1")
        phy2log_LP: npt.NDArray[Any] = np.array(rows, dtype=np.int64)
        if lengths == [shape.num_slots]:
            shape.settle_hosts()
            phy2log_LP = shape.from_engine(phy2log_LP)
        return Placement(model=model, **sizes, phy2log_LP=phy2log_LP)

    def engine(self) -> str | None:
        """The engine that the map is for, if the file says so."""
        options = {} if self.provenance is None else self.provenance.options or {}
        engine = options.get("engine")
        return engine if isinstance(engine, str) else None

    def described_cluster(self) -> Cluster | None:
        """The cluster that the map was made for, if the file describes it. Raises MapError."""
        if self.provenance is None or self.provenance.cluster is None:
            return None
        try:
            return self.provenance.cluster.cluster()
        except InputError as error:
            raise MapError(f"provenance.cluster: {error}") from None


def save_placement(path: str | Path, document: Mapping[str, Any]) -> None:
    """Write a document of this schema, whole or not at all.

    Args:
        path: the file to write
        document: what `solution_document` or `PlacementFile.document` gives

    Raises:
        OutputError: The output cannot be written.
    """
    write_atomic(path, PlacementFile.encode(document))


def load_placement(path: str | Path) -> tuple[Placement, PlacementFile]:
    """Read and check a placement file.

    Args:
        path: The file, schema `expert-placement/1`.

    Returns:
        The map, and the whole file.

    Raises:
        MapError: The file cannot be read, or its map is not sound; `faults` has every fault.
    """
    path = Path(path)
    file = PlacementFile.read(path)
    try:
        return file.placement(), file
    except InputError as error:
        raise MapError(f"{path}: {error}", getattr(error, "faults", ())) from None


def cluster_of_change(old: PlacementFile, new: PlacementFile) -> Cluster:
    """The cluster of the new file; what the new file leaves out of it is as the old file says, else the default.

    Raises:
        MapError: The cluster that a file describes is not sound.
    """
    described, before = new.described_cluster(), old.described_cluster()
    if described is not None:
        return described
    plain = Cluster(**new.cluster.sizes())
    if before is None or before.sizes() == plain.sizes():
        return before or plain
    return replace(before, **new.cluster.sizes(), gpu_speeds=(), topology=EVEN)


def lost_before(current: Placement, new: PlacementFile) -> tuple[int, ...]:
    """The ranks that the new file was told to be lost where it is a change of this very map; else none."""
    change = new.migration
    if change is None or change.old_ranks is None or change.from_map != map_digest(current):
        return ()
    return tuple(rank for rank in range(current.num_ranks) if rank not in change.old_ranks)
