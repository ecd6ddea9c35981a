"""Where outputs would go, a quick solve, and sound inputs to be broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def solve(run_cli: Any, out: Path) -> Any:
    """`solve(folder, *options)`: a quick solve into the folder `out`."""

    def run(folder: Path | str, *options: object) -> Any:
        return run_cli(
            "solve", folder, "-o", out / "p.json", "--nodes", 2, "--gpus-per-node", 2, "--work-limit", 100, *options
        )

    return run


@pytest.fixture
def trace(tmp_path: Path, write_trace: Any) -> Any:
    return write_trace(tmp_path / "trace", num_layers=2, num_experts=8, top_k=2, tokens=60, requests=6, num_shards=2)


@pytest.fixture(scope="session")
def sound_map(tmp_path_factory: pytest.TempPathFactory, write_trace: Any, run_cli: Any) -> Path:
    """A placement file for the shape of `trace`."""
    folder = tmp_path_factory.mktemp("map")
    write_trace(folder / "t")
    result = run_cli(
        "solve", folder / "t", "-o", folder / "p.json", "--nodes", 2, "--gpus-per-node", 2, "--solver", "linear"
    )
    assert result.code == 0, result.stderr
    return folder / "p.json"


@pytest.fixture(scope="session")
def skewed(tmp_path_factory: pytest.TempPathFactory, write_trace: Any) -> Any:
    """A trace of 8 experts that all tokens of which visit expert 0: no map balances it."""
    rng = np.random.default_rng(0)
    ids = np.stack([np.zeros((2, 60), dtype=int), rng.integers(1, 8, (2, 60))], axis=2)
    return write_trace(tmp_path_factory.mktemp("skewed") / "t", ids_LTK=ids, num_experts=8, requests=6)
