"""LMDeploy's own EPLB makes our map of our statistics."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from placement.core.model import Model
from placement.core.placement import Placement
from placement.exporters import get_exporter
from placement.testing.exporters import exported, small_placement

pytestmark = pytest.mark.engines
NAME = "lmdeploy.pytorch.nn.eplb"


@pytest.fixture
def metadata(
    import_engine: Callable[..., Callable[[str], ModuleType]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Any]:
    """The engine's metadata of a placement: environment variables as the hint says them."""

    def run(placement: Placement, hidden_layers: int) -> Any:
        export = exported(get_exporter("lmdeploy"), placement)
        path = tmp_path / "statistics.json"
        path.write_bytes(export.content)
        assert len(json.loads(export.content)) == hidden_layers
        words = export.hints[0].partition("with: ")[2].split()
        for word in words:
            if word.startswith("LMDEPLOY_"):
                name, _, value = word.partition("=")
                monkeypatch.setenv(name, str(path) if value == "FILE" else value)
        load = import_engine("lmdeploy", "lmdeploy.pytorch.envs", NAME)
        ranks = int(words[words.index("--ep") + 1])
        return load(NAME).EPLBMetadata.init(ranks, placement.model.num_experts, hidden_layers)

    return run


@pytest.mark.parametrize(
    ("nodes", "gpus", "slots"), [(2, 2, 2), (4, 8, 8), (1, 4, 3), (3, 1, 7)], ids=["2x2x2", "4x8x8", "1x4x3", "3x1x7"]
)
def test_without_redundant_experts_it_makes_our_map(
    nodes: int, gpus: int, slots: int, metadata: Callable[..., Any]
) -> None:
    """Slot for slot, of any map: its greedy packing is steered by the loads."""
    rng = np.random.default_rng(slots)
    num_experts = nodes * gpus * slots
    placement = Placement(
        model=Model(name="m", layer_ids=(1, 2, 4), num_experts=num_experts, top_k=2, num_hidden_layers=6),
        num_nodes=nodes,
        gpus_per_node=gpus,
        slots_per_gpu=slots,
        phy2log_LP=np.stack([rng.permutation(num_experts) for _ in range(3)]),
    )
    made = metadata(placement, 6).physical_to_logical_map.numpy()
    assert np.array_equal(made[[1, 2, 4]], placement.phy2log_LP)


@pytest.mark.parametrize("groups", [None, 2, 3])
def test_with_redundant_experts_it_takes_our_loads(groups: int | None, metadata: Callable[..., Any]) -> None:
    """The experts that are hot get the copies, and every expert a slot, whatever the groups of the model."""
    placement = small_placement(layer_ids=(1, 3))
    rows = metadata(replace(placement, model=replace(placement.model, num_groups=groups)), 4).physical_to_logical_map
    for layer, hot in ((1, 0), (3, 5)):
        copies = np.bincount(rows[layer].numpy(), minlength=6)
        assert copies.min() >= 1
        assert copies[hot] == copies.max()
