"""The map that runs comes in: what EPLB makes is imported, measured, changed by few moves and exported again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from map_in_force import CHOICES, MOVES, SHAPES, TOP_K, changed, wasted_told
from published_eplb import published_map

from placement import load_placement
from placement.cost.choices import REPLICA_CHOICES


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("engine", CHOICES)
def test_round_trip(shape: tuple[int, ...], engine: str, write_trace: Any, run_cli: Any, tmp_path: Path) -> None:
    """Import says what is wasted; a change keeps the budget, uses wasted slots and pays; the engine's file has it."""
    change = changed(engine, shape, tmp_path, write_trace, run_cli)
    held = change.now.phy2log_LP.reshape(-1, change.now.slots_per_gpu).tolist()
    wasted = sum(len(one) - len(set(one)) for one in held)
    assert wasted_told(change.import_told) == wasted > 0
    assert 0 < change.moves <= MOVES
    left = change.new.wasted_LP().sum()
    assert max(wasted - MOVES, 0) <= left < wasted
    assert f"The map in use wastes {wasted} slots, the answer {left}." in " ".join(change.solve_told.split())
    maps = ("--map", tmp_path / "now.json", "--map", tmp_path / "new.json")
    told = change.run("evaluate", tmp_path / "trace", *maps, "--replica-choice", CHOICES[engine], "--json")
    now, new = (one["summary"] for one in json.loads(told)["maps"])
    imbalance = [one["rank_imbalance"]["mean"] for one in (now, new)]
    assert new["sends_per_token"] < now["sends_per_token"] or imbalance[1] < imbalance[0]
    plan = json.loads(change.run("diff", tmp_path / "now.json", tmp_path / "new.json", "--json"))
    assert plan["moves"] == change.moves
    change.run("export", tmp_path / "new.json", "--to", engine, "-o", tmp_path / "out.json")
    on = ("--nodes", shape[2], "--gpus-per-node", shape[3], "--top-k", TOP_K)
    change.run("import", tmp_path / "out.json", "--from", engine, *on, "-o", tmp_path / "again.json")
    assert np.array_equal(load_placement(tmp_path / "again.json")[0].phy2log_LP, change.new.phy2log_LP)


def test_watch_starts_from_the_map_in_force(write_trace: Any, run_cli: Any, tmp_path: Path) -> None:
    """`watch --from` takes it, and proposes a change that uses the wasted slots."""
    rows = published_map(2, 16, 8, 2, 2, seed=2)
    (tmp_path / "engine.json").write_text(json.dumps(rows.tolist()))
    shape = ("--nodes", 2, "--gpus-per-node", 2, "--top-k", 2)
    imported = run_cli("import", tmp_path / "engine.json", "--from", "vllm", *shape, "-o", tmp_path / "now.json")
    assert "slots are wasted" in imported.stdout
    for number in range(2):
        write_trace(tmp_path / "in" / f"day-{number}", num_experts=16, tokens=2000, requests=100, seed=number)
    watched = ("--from", tmp_path / "now.json", "--window-tokens", 2000, "--horizon-steps", 10**9, "--once")
    result = run_cli("watch", tmp_path / "in", *watched, "--work-limit", 500, "-o", tmp_path / "out")
    assert result.code == 0, result.stderr
    proposal, _ = load_placement(tmp_path / "out" / "placement-1.json")
    assert proposal.wasted_LP().sum() < load_placement(tmp_path / "now.json")[0].wasted_LP().sum()


def test_a_map_whose_layers_differ_in_slots(write_trace: Any, run_cli: Any, tmp_path: Path) -> None:
    """It comes in, is measured and goes out; what needs as many slots in every layer says so in one line."""
    holds_GLE = np.zeros((4, 2, 8), dtype=np.int32)
    for rank in range(4):
        holds_GLE[rank, :, [2 * rank, 2 * rank + 1]] = 1
        holds_GLE[rank, 0, (2 * rank + 2) % 8] = 1  # a redundant expert a GPU, in layer 0 only
    np.save(tmp_path / "pattern.npy", holds_GLE)
    shape = ("--nodes", 2, "--top-k", 2, "-o", tmp_path / "now.json")
    imported = run_cli("import", tmp_path / "pattern.npy", "--from", "omni-infer", *shape)
    assert imported.code == 0, imported.stderr
    assert "up to 4 redundant" in imported.stdout
    assert "slots of a GPU differ: 3 in layer 0; 2 in layer 1" in imported.stdout
    trace = write_trace(tmp_path / "trace", num_layers=2, tokens=2000)
    for choice in REPLICA_CHOICES:
        told = run_cli("evaluate", trace.folder, "--map", tmp_path / "now.json", "--replica-choice", choice, "--json")
        (measured,) = json.loads(told.stdout)["maps"]
        assert len(measured["layers"]) == 2
    exported = run_cli("export", tmp_path / "now.json", "--to", "omni-infer", "-o", tmp_path / "again.npy")
    assert exported.code == 0, exported.stderr
    assert np.array_equal(np.load(tmp_path / "again.npy"), holds_GLE)
    again = ("--from", tmp_path / "now.json")
    on = ("--nodes", 2, "--gpus-per-node", 2, "--redundant-experts", 4)
    for words in (
        ("solve", trace.folder, *on, *again, "-o", tmp_path / "new.json"),
        ("diff", tmp_path / "now.json", tmp_path / "now.json"),
        ("group", trace.folder, "--map", tmp_path / "now.json", "-o", tmp_path / "homes.json"),
        ("watch", trace.folder, *again, "--once", "-o", tmp_path / "out"),
        ("export", tmp_path / "now.json", "--to", "sglang", "-o", tmp_path / "out.json"),
    ):
        refused = run_cli(*words)
        assert refused.code == 2, words
        assert "slots of a GPU differ from layer to layer (3 in layer 0; 2 in layer 1)" in refused.stderr, words
        assert refused.stderr.count("\n") == 1, words
