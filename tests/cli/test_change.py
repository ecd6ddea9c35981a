"""`solve --from` and `diff`: budgets hold, nothing gets worse, and what is copied is told the same everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placement import load_placement
from placement.core.relabel import moved_P

SHAPE = ("--nodes", 2, "--gpus-per-node", 2, "--work-limit", 3000)


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory, write_trace: Any, run_cli: Any) -> tuple[Path, Path]:
    """(a map fitted on one trace, the folder of another trace of the same model with other tastes)."""
    folder = tmp_path_factory.mktemp("shifted")
    shape = {"num_layers": 3, "num_experts": 16, "top_k": 3, "tokens": 400, "requests": 12, "spread": 1.5}
    for name, seed in (("old", 1), ("new", 2)):
        write_trace(folder / name, seed=seed, layer_ids=[1, 2, 4], **shape)
    result = run_cli("solve", folder / "old", "-o", folder / "current.json", *SHAPE, "--holdout", 0)
    assert result.code == 0, result.stderr
    return folder / "current.json", folder / "new"


def change(run_cli: Any, shifted: tuple[Path, Path], output: Path, *options: object) -> dict[str, Any]:
    current, trace = shifted
    result = run_cli("solve", trace, "--from", current, "-o", output, *SHAPE, *options)
    assert result.code == 0, result.stderr
    return json.loads(output.read_text())


def moves_by_layer(current: Path, new: Path) -> list[int]:
    """Slots of the new map whose expert their rank does not hold in the current one."""
    old_LP, new_LP = (np.array(load_placement(path)[0].phy2log_LP) for path in (current, new))
    slots = old_LP.shape[1] // 4
    return [
        sum(expert not in old_P[p // slots * slots :][:slots] for p, expert in enumerate(new_P))
        for old_P, new_P in zip(old_LP, new_LP, strict=True)
    ]


def objectives(document: dict[str, Any]) -> float:
    return sum(layer["objective"] for layer in document["layers"])


def test_budgets_hold_and_more_is_not_worse(shifted: tuple[Path, Path], tmp_path: Path, run_cli: Any) -> None:
    """Never more moves than allowed, in all or in a layer; a larger budget is no worse; a budget of 0 keeps the map."""
    current = shifted[0]
    found = []
    for most in (0, 1, 5, 48):
        document = change(run_cli, shifted, tmp_path / "p.json", "--max-moves", most)
        moves = moves_by_layer(current, tmp_path / "p.json")
        assert sum(moves) <= most
        assert document["migration"]["moves_by_layer"] == moves
        assert document["migration"]["reordered"] == 0
        found.append(objectives(document))
        if most == 0:
            assert document["physical_to_logical"] == json.loads(current.read_text())["physical_to_logical"]
            assert {layer["solver"] for layer in document["layers"]} == {"current"}
            train = document["evaluation"]["train"]
            assert train["auto"] == train["current"]
    assert found == sorted(found, reverse=True)
    assert found[-1] < found[0]
    without = change(run_cli, shifted, tmp_path / "p.json")
    assert found[-1] <= objectives(without) < found[0]
    each = change(run_cli, shifted, tmp_path / "p.json", "--max-moves", "2/layer")
    assert max(moves_by_layer(current, tmp_path / "p.json")) <= 2
    assert objectives(without) <= objectives(each) < found[0]


@pytest.mark.parametrize("redundant", [0, 4])
def test_same_bytes_whatever_the_workers(
    redundant: int, shifted: tuple[Path, Path], tmp_path: Path, run_cli: Any
) -> None:
    """The placement and the plan depend on the input alone, though layers compete for the moves."""
    files = []
    options = ("--redundant-experts", redundant, "--work-limit", 500)
    current = tmp_path / "current.json"
    assert run_cli("solve", shifted[1], "-o", current, *SHAPE, "--seed", 7, *options).code == 0
    for workers in (1, 3):
        plan = tmp_path / f"plan{workers}.json"
        output = tmp_path / f"p{workers}.json"
        change(run_cli, (current, shifted[1]), output, *options, "--max-moves", 6, "--workers", workers)
        assert run_cli("diff", current, output, "-o", plan).code == 0
        files.append((output.read_bytes(), plan.read_bytes()))
    assert files[0] == files[1]


def test_diff_tells_what_solve_told(shifted: tuple[Path, Path], tmp_path: Path, run_cli: Any) -> None:
    """`diff` writes and prints the plan whose totals the placement file has."""
    current = shifted[0]
    document = change(run_cli, shifted, tmp_path / "p.json", "--max-moves", 8)
    result = run_cli("diff", current, tmp_path / "p.json", "-o", tmp_path / "d.json", "--json")
    assert result.code == 0, result.stderr
    plan = json.loads(result.stdout)
    assert plan == json.loads((tmp_path / "d.json").read_text())
    assert document["migration"] == {key: plan[key] for key in document["migration"]}
    assert len(plan["copies"]) == plan["moves"] == sum(moves_by_layer(current, tmp_path / "p.json"))
    assert plan["bytes_between_nodes"] + plan["bytes_within_nodes"] == plan["moves"] * plan["expert_bytes"]
    assert load_placement(tmp_path / "p.json")[1].migration is not None


def test_diff_prints_a_table(shifted: tuple[Path, Path], tmp_path: Path, run_cli: Any, monkeypatch: Any) -> None:
    """A row for every layer that changes and one for all; nothing is cut in 80 columns."""
    change(run_cli, shifted, tmp_path / "p.json")
    monkeypatch.setenv("COLUMNS", "80")
    result = run_cli("diff", shifted[0], tmp_path / "p.json")
    assert result.code == 0, result.stderr
    assert all(len(line.rstrip()) <= 80 for line in result.stdout.splitlines())
    moves = moves_by_layer(shifted[0], tmp_path / "p.json")
    cells = [line.split()[:2] for line in result.stdout.splitlines()]
    for layer_id, number in zip((1, 2, 4), moves, strict=True):
        assert ([str(layer_id), str(number)] in cells) == (number > 0)
    assert ["all", str(sum(moves))] in cells
    assert "…" not in result.stdout
    nothing = run_cli("diff", shifted[0], shifted[0])
    assert "Nothing moves" in nothing.stdout


def test_table_has_the_current_map(shifted: tuple[Path, Path], tmp_path: Path, run_cli: Any) -> None:
    """The current map stands beside the result, measured on the same requests; the last lines say what moves."""
    output = tmp_path / "p.json"
    result = run_cli("solve", shifted[1], "--from", shifted[0], "-o", output, *SHAPE, "--max-moves", 6)
    assert len([line for line in result.stdout.splitlines() if line.split()[:1] == ["current"]]) == 2
    assert "slots of 48 move" in result.stdout
    evaluated = run_cli("evaluate", shifted[1], "--map", shifted[0], "--json")
    whole = json.loads(evaluated.stdout)["maps"][0]["summary"]
    document = json.loads(output.read_text())
    tokens = [document["evaluation"][part]["current"]["tokens"] for part in ("train", "held_out")]
    assert sum(tokens) == whole["tokens"]


def test_a_solver_that_does_not_search_is_relabelled(shifted: tuple[Path, Path], tmp_path: Path, run_cli: Any) -> None:
    """eplb's own map names nodes and GPUs as it likes; as a change of the current map it moves no more than it must."""
    current, trace = shifted
    alone = tmp_path / "alone.json"
    assert run_cli("solve", trace, "-o", alone, *SHAPE, "--solver", "eplb").code == 0
    document = change(run_cli, shifted, tmp_path / "p.json", "--solver", "eplb")
    assert sum(moves_by_layer(current, tmp_path / "p.json")) < sum(moves_by_layer(current, alone))
    assert objectives(document) == pytest.approx(objectives(json.loads(alone.read_text())), abs=1e-6)


def test_moves_are_counted_as_the_library_counts(shifted: tuple[Path, Path], tmp_path: Path, run_cli: Any) -> None:
    """Protects the count above, which the other tests rely on."""
    change(run_cli, shifted, tmp_path / "p.json")
    (old, file), (new, _) = (load_placement(path) for path in (shifted[0], tmp_path / "p.json"))
    cluster = file.described_cluster()
    assert cluster is not None
    counted = [int(moved_P(a, b, cluster).sum()) for a, b in zip(old.phy2log_LP, new.phy2log_LP, strict=True)]
    assert counted == moves_by_layer(shifted[0], tmp_path / "p.json")
