"""A map that EPLB made and an engine runs, changed by the command line: imported, measured, changed, exported."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from published_eplb import published_map

from placement import Placement, load_placement

LAYERS, TOP_K, MOVES = 4, 4, 20
# experts, redundant ones, nodes, GPUs of a node
SHAPES = {"256 + 32 on 4 x 8": (256, 32, 4, 8), "128 + 16 on 2 x 8": (128, 16, 2, 8)}
CHOICES = {"sglang": "local-first", "vllm": "uniform"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The map in force, the map that it was changed to, and what was told on the way."""

    now: Placement
    new: Placement
    moves: int
    import_told: str
    solve_told: str
    run: Callable[..., str]


def changed(engine: str, shape: tuple[int, ...], folder: Path, write_trace: Any, run_cli: Any) -> Change:
    """Leaves `now.json`, `new.json` and the trace `trace` in the folder; `run` runs a further command."""
    experts, redundant, nodes, gpus = shape
    rows = published_map(LAYERS, experts, redundant, nodes, gpus, seed=1).tolist()
    (folder / "engine.json").write_text(json.dumps({"physical_to_logical_map": rows} if engine == "sglang" else rows))
    write_trace(folder / "trace", num_layers=LAYERS, num_experts=experts, top_k=TOP_K, tokens=600, requests=20)

    def run(*words: object) -> str:
        result = run_cli(*words)
        assert result.code == 0, result.stderr
        return str(result.stdout)

    on = ("--nodes", nodes, "--gpus-per-node", gpus)
    told = run("import", folder / "engine.json", "--from", engine, *on, "--top-k", TOP_K, "-o", folder / "now.json")
    search = ("--redundant-experts", redundant, "--holdout", 0, "--work-limit", 300, "--bound", "none")
    change = ("--from", folder / "now.json", "--max-moves", MOVES, "--replica-choice", CHOICES[engine])
    solve_told = run("solve", folder / "trace", *on, *search, *change, "-o", folder / "new.json")
    now, (new, file) = load_placement(folder / "now.json")[0], load_placement(folder / "new.json")
    assert now.phy2log_LP.tolist() == rows
    assert file.migration is not None
    return Change(now=now, new=new, moves=file.migration.moves, import_told=told, solve_told=solve_told, run=run)


def wasted_told(told: str) -> int:
    """The number of wasted slots that the import says."""
    found = re.search(rf"^(\d+) slots are wasted, in \d of {LAYERS} layers", told, re.MULTILINE)
    assert found, told
    return int(found[1])
