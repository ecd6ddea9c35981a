"""SGLang's own parser loads our files, and shows why they are checked before."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from map_in_force import SHAPES, changed

from placement.core.placement import Placement
from placement.errors import MapError
from placement.exporters import get_exporter, get_importer
from placement.exporters.base import ExportOptions
from placement.exporters.deepseek_eplb import eplb_tensors
from placement.exporters.imports import imported
from placement.testing.exporters import small_placement

pytestmark = pytest.mark.engines


def mtp_placement() -> Placement:
    """The golden map in layers 1 and 3 of four, and an MTP layer."""
    one = small_placement()
    model = replace(one.model, layer_ids=(1, 3, 4), num_hidden_layers=4)
    return replace(one, model=model, phy2log_LP=np.vstack([one.phy2log_LP, one.phy2log_LP[:1]]))


@pytest.mark.parametrize("suffix", [".json", ".pt"])
@pytest.mark.parametrize("rank", range(4))
def test_it_starts_from_our_map(suffix: str, rank: int, sglang_metadata: Callable[..., Any], tmp_path: Path) -> None:
    """Row by row, and every rank dispatches every expert to a slot that holds it: one of its own node if there is."""
    placement = mtp_placement()
    path = tmp_path / f"map{suffix}"
    path.write_bytes(get_exporter("sglang").export(placement, ExportOptions(suffix=suffix)).content)
    metadata = sglang_metadata(path, rank=rank)
    rows = metadata.physical_to_logical_map.tolist()
    assert len(rows) == 4
    assert [rows[1], rows[3]] == placement.phy2log_LP[:2].tolist()
    slot_LE = metadata.logical_to_rank_dispatch_physical_map.numpy()
    for layer, row in zip((1, 3), placement.phy2log_LP, strict=False):
        assert row[slot_LE[layer]].tolist() == list(range(6))
        nodes = placement.rank_of_slot_P() // placement.gpus_per_node
        for expert in range(6):
            at = set(nodes[row == expert].tolist())
            assert nodes[slot_LE[layer, expert]] == (rank // 2 if rank // 2 in at else min(at))


SILENT = {
    "expert without a slot": ("dynamic", [[0, 1, 2, 3, 4, 4, 0, 1]] * 4, "experts 5 have no slot"),
    "negative id": ("dynamic", [[0, 1, 2, 3, 4, -1, 0, 1]] * 4, "slot 5 holds id -1"),
    "too few layers": ("static", [[0, 1, 2, 3, 4, 5, 0, 1]] * 3, "3 rows; one for each of 4 hidden layers"),
    "too few slots": ("static", [[0, 1, 2, 3, 4, 5]] * 4, "cannot be shared evenly"),
}


@pytest.mark.parametrize("defect", SILENT)
def test_what_it_takes_in_silence_is_refused_here(
    defect: str, sglang_metadata: Callable[..., Any], tmp_path: Path
) -> None:
    """The engine's parser makes no objection; `placement import` does, in words."""
    algorithm, rows, told = SILENT[defect]
    content = json.dumps({"physical_to_logical_map": rows}).encode()
    path = tmp_path / "map.json"
    path.write_bytes(content)
    assert sglang_metadata(path, algorithm=algorithm) is not None
    with pytest.raises(MapError, match=told):
        imported(
            get_importer("sglang").read(content, ".json"),
            name="x",
            top_k=2,
            num_nodes=2,
            gpus_per_node=2,
            num_experts=6,
            num_hidden_layers=4,
        )


def test_it_takes_no_further_key(sglang_metadata: Callable[..., Any]) -> None:
    """Which is why nothing else is in our file."""
    rows = [[0, 1, 2, 3, 4, 5, 0, 1]] * 4
    with pytest.raises(TypeError):
        sglang_metadata(json.dumps({"physical_to_logical_map": rows, "made_by": "us"}))


def test_eplb_tensors_are_those_of_its_eplb(import_engine: Callable[..., Callable[[str], ModuleType]]) -> None:
    """DeepSeek's EPLB, as SGLang has it, returns what our exporter makes of the same map."""
    import torch

    name = "sglang.srt.eplb.eplb_algorithms.deepseek"
    load_LE = torch.tensor(np.random.default_rng(0).pareto(1.0, (3, 16)) + 0.1)
    phy2log, log2phy, logcnt = import_engine("sglang", name)(name).rebalance_experts(load_LE, 24, 4, 2, 8, True)
    made = eplb_tensors(phy2log.numpy(), 16)
    assert np.array_equal(made["logcnt"], logcnt.numpy())
    copies = made["log2phy"].shape[2]
    assert np.array_equal(np.sort(made["log2phy"]), np.sort(log2phy.numpy()[:, :, :copies]))
    assert (log2phy.numpy()[:, :, copies:] == -1).all()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_change_of_the_map_in_force(
    shape: tuple[int, ...], sglang_metadata: Callable[..., Any], write_trace: Any, run_cli: Any, tmp_path: Path
) -> None:
    """It parses the map that our change made of EPLB's, wasted slots included, and every rank serves what it holds.

    What `local-first` takes for its rule holds: away from home its fair pick counts every slot of a rank.
    """
    change = changed("sglang", shape, tmp_path, write_trace, run_cli)
    change.run("export", tmp_path / "now.json", "--to", "sglang", "-o", tmp_path / "same.json")
    change.run("export", tmp_path / "new.json", "--to", "sglang", "-o", tmp_path / "out.json")
    changed_rows = sglang_metadata(tmp_path / "out.json", shape=shape).physical_to_logical_map
    assert changed_rows.tolist() == change.new.phy2log_LP.tolist()
    placement, gpus = change.now, shape[3]
    rank_P = placement.rank_of_slot_P()
    tables = [
        sglang_metadata(tmp_path / "same.json", shape=shape, rank=rank).logical_to_rank_dispatch_physical_map.numpy()
        for rank in range(placement.num_ranks)
    ]
    wasted = 0
    for layer, row in enumerate(placement.phy2log_LP):
        for expert in set(row[placement.wasted_LP()[layer]].tolist()):
            holders = rank_P[row == expert]
            far = [rank for rank in range(placement.num_ranks) if rank // gpus not in set((holders // gpus).tolist())]
            served = np.bincount([rank_P[tables[rank][layer, expert]] for rank in far], minlength=placement.num_ranks)
            fair = len(far) * np.bincount(holders, minlength=placement.num_ranks) / len(holders)
            assert (np.abs(served - fair) < np.bincount(holders, minlength=placement.num_ranks) + 1e-9).all()
            wasted += bool(far)
    assert wasted or shape[2] == 2
