"""A cap on imbalance that no map meets, or none that was found, ends with exit code 3 or 4 and writes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import files, refused


# with copies the searches meet this cap
@pytest.mark.parametrize(("solver", "redundant"), [("auto", 0), ("linear", 0), ("anneal", 0), ("linear", 4)])
def test_cap_on_nodes_that_is_not_met(solver: str, redundant: int, skewed: Any, solve: Any, out: Path) -> None:
    """Only the cap on nodes is broken: the message names it and its option, not the cap on GPUs that was not given."""
    options = ("--max-imbalance", ",1.0", "--solver", solver, "--redundant-experts", redundant)
    result = solve(skewed.folder, *options)
    assert result.code in (3, 4)
    refused(result, "max_node_imbalance=1.0", code=result.code)
    assert "None" not in result.stderr and "max_imbalance" not in result.stderr
    refused(solve(skewed.folder, *options, "--max-imbalance", "3.9,1.0"), "max_node_imbalance=1.0", code=result.code)
    assert files(out) == set()


def test_what_a_broken_cap_on_nodes_offers_works(skewed: Any, solve: Any) -> None:
    """The message tells the nodes' imbalance, so that this value, as the option that it names, lets the layer pass."""
    least = 1.0
    for layer in (0, 1):
        result = solve(skewed.folder, "--holdout", 0, "--solver", "linear", "--max-imbalance", f",{least}")
        refused(result, f"layer {layer}:", "raise the second number of --max-imbalance", code=4)
        least = max(least, float(result.stderr.split("the best has ")[1].split(" over nodes")[0]) + 1e-6)
    assert solve(skewed.folder, "--holdout", 0, "--solver", "linear", "--max-imbalance", f",{least}").code == 0
    assert least < 2  # it is not the imbalance over GPUs, one of which serves half of all


def test_cap_on_nodes_is_kept(trace: Any, solve: Any, out: Path) -> None:
    """Where the cheapest map breaks the cap on nodes, a dearer one within it is written."""
    worst = {}
    for cap in (4.0, 1.03):
        assert solve(trace.folder, "--holdout", 0, "--balance-weight", 0, "--max-imbalance", f",{cap}").code == 0
        figures = json.loads((out / "p.json").read_text())["evaluation"]["train"]["auto"]
        worst[cap] = figures["node_imbalance"]["max"]
    assert worst[1.03] <= 1.03 < worst[4.0]


@pytest.mark.parametrize("solver", ["linear", "round-robin", "eplb"])
def test_cap_that_a_solver_does_not_meet(solver: str, tmp_path: Path, write_trace: Any, solve: Any, out: Path) -> None:
    """A cap holds for solvers that do not search, too: a map that breaks it is not written (exit code 4)."""
    load = [9, 9, 9, 9, 8, 8, 8, 8, 1, 1, 1, 1]  # 3 slots a GPU: 18 on each is possible; loads are interleaved badly
    ids = np.repeat([0, 1, 2, 4, 3, 5, 6, 8, 7, 9, 10, 11], load).reshape(1, -1, 1)
    folder = write_trace(tmp_path / "t", ids_LTK=ids, num_experts=12, requests=3).folder
    free = solve(folder, "--holdout", 0, "--solver", solver)
    document = json.loads((out / "p.json").read_text())
    worst = document["evaluation"]["train"][solver]["rank_imbalance"]["max"]
    assert free.code == 0
    (out / "p.json").unlink()
    assert solve(folder, "--holdout", 0, "--solver", solver, "--max-imbalance", worst + 0.001).code == 0
    (out / "p.json").unlink()
    if worst > 1.01:
        refused(solve(folder, "--holdout", 0, "--solver", solver, "--max-imbalance", 1.005), "1.005", code=4)
    else:
        assert solver != "linear"
    assert files(out) == set()


@pytest.mark.parametrize("cap", [1.0, 1.0001])
def test_cap_that_no_map_meets(cap: float, tmp_path: Path, write_trace: Any, solve: Any, out: Path) -> None:
    """Whether proven impossible (3) or not found (4): one line, no map that breaks the cap, no file."""
    load = [6, 6, 6, 5, 5, 5, 5, 1]  # mean of 4 GPUs: 9.75, but whole loads of pairs are whole numbers
    ids = np.repeat(np.arange(8), load).reshape(1, -1, 1)
    folder = write_trace(tmp_path / "t", ids_LTK=ids, num_experts=8, requests=3).folder
    result = solve(folder, "--max-imbalance", cap, "--holdout", 0)
    assert result.code in (3, 4)
    refused(result, f"max_imbalance={cap}", code=result.code)
    assert files(out) == set()


def test_cap_out_of_reach_of_the_moves(tmp_path: Path, write_trace: Any, solve: Any, out: Path) -> None:
    """Where the current map breaks a cap and too few slots may move to mend it: exit code 4, and no file."""
    folders = []
    for name, load in (("old", [5, 5, 5, 5, 5, 5, 5, 5]), ("new", [20, 20, 1, 1, 1, 1, 1, 1])):
        ids = np.repeat(np.arange(8), load).reshape(1, -1, 1)
        folders.append(write_trace(tmp_path / name, ids_LTK=ids, num_experts=8, requests=3).folder)
    current = tmp_path / "current.json"
    assert solve(folders[0], "--holdout", 0, "--solver", "linear", "-o", current).code == 0
    change = ("--holdout", 0, "--from", current, "--max-imbalance", 1.9)
    refused(solve(folders[1], *change, "--max-moves", 0), "max_imbalance=1.9", "--max-moves", code=4)
    assert files(out) == set()
    assert solve(folders[1], *change, "--max-moves", 2).code == 0
