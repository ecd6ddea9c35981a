"""A sound placement, the published schema, and files that are read or refused in a line."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np

import placement as package
from placement import Model, Placement, load_placement
from placement.documents.placement import PlacementFile
from placement.errors import MapError

PUBLISHED = Path(package.__file__).parent / "documents" / "schemas" / "expert-placement-1.json"


def sound_placement(num_groups: int | None = None) -> Placement:
    return Placement(
        model=Model(name='tîny "m"\n', layer_ids=(3, 7), num_experts=6, top_k=2, num_groups=num_groups),
        num_nodes=2,
        gpus_per_node=2,
        slots_per_gpu=2,
        phy2log_LP=np.array([[0, 1, 2, 3, 4, 5, 0, 1], [5, 4, 3, 2, 1, 0, 5, 4]]),
    )


def validate(document: Any) -> None:
    schema = PlacementFile.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(document)


def _load_or_refuse(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "p.json")
        path.write_bytes(content)
        try:
            loaded, _ = load_placement(path)
        except MapError as error:
            assert "\n" not in str(error)
            assert str(path) in str(error)
        else:
            assert loaded.phy2log_LP.shape == (loaded.model.num_layers, loaded.num_slots)
