"""Documents are valid under the published schema, which is the code's and asks for every part."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from sound_placement import PUBLISHED, sound_placement, validate

from placement import load_placement
from placement.documents.placement import PlacementFile
from placement.errors import MapError


def test_documents_are_valid(full_document: dict[str, Any]) -> None:
    """What is written is valid by the JSON Schema, with and without the optional parts."""
    validate(full_document)
    validate(json.loads(PlacementFile.encode(full_document)))
    validate(PlacementFile.of(sound_placement()).document())
    validate(PlacementFile.of(sound_placement(3)).document())


@pytest.mark.parametrize(
    "path",
    [
        "schema",
        "model",
        "cluster",
        "physical_to_logical",
        "model.name",
        "model.layer_ids",
        "model.num_experts",
        "model.top_k",
        "cluster.num_nodes",
        "cluster.gpus_per_node",
        "cluster.slots_per_gpu",
        "evaluation.result",
        "evaluation.train.linear.node_sends_per_token",
        "evaluation.train.linear.rank_imbalance.max",
    ],
)
def test_schema_asks_for_every_part(full_document: dict[str, Any], path: str, tmp_path: Path) -> None:
    """A document that lacks a required key is refused by the JSON Schema and by the reader, which names the key."""
    document = copy.deepcopy(full_document)
    *parents, last = path.split(".")
    place = document
    for parent in parents:
        place = place[parent]
    del place[last]
    with pytest.raises(jsonschema.ValidationError):
        validate(document)
    (tmp_path / "p.json").write_text(json.dumps(document))
    with pytest.raises(MapError, match=last):
        load_placement(tmp_path / "p.json")


def test_published_schema() -> None:
    """The file that users point their editors at is the schema that the code checks by."""
    assert json.loads(PUBLISHED.read_text()) == PlacementFile.json_schema()
