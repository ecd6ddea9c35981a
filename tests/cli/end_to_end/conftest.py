"""A small trace with dense layers, and one solve of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from solved_trace import LAYER_IDS, QUICK


@pytest.fixture(scope="session")
def trace(tmp_path_factory: pytest.TempPathFactory, write_trace: Any) -> Path:
    """Three MoE layers of 12 experts, top-3, with dense layers before and between; requests have tastes."""
    folder = tmp_path_factory.mktemp("traces") / "tiny"
    write_trace(
        folder,
        layer_ids=LAYER_IDS,
        num_layers=3,
        num_experts=12,
        top_k=3,
        tokens=600,
        requests=20,
        num_shards=3,
        spread=1.5,
        seed=4,
        name="tiny moe",
    )
    return folder


@pytest.fixture(scope="session")
def solved(tmp_path_factory: pytest.TempPathFactory, trace: Path, run_cli: Any) -> Any:
    """A folder with placement.json and report.html of one solve with --json, and the document that it printed."""
    folder = tmp_path_factory.mktemp("solved")
    result = run_cli(
        *("solve", trace, "-o", folder / "placement.json", "--report", folder / "report.html"),
        *("--nodes", 2, "--gpus-per-node", 2, *QUICK, "--json"),
    )
    assert result.code == 0, result.stderr
    return folder, result
