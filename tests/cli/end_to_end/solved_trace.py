"""The shape of the trace that the commands are run on, and a solve of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from placement import open_trace
from placement.traces.split import split_requests

SUMMARY_KEYS = {
    "tokens",
    "sends_per_token",
    "node_sends_per_token",
    "rank_sends_per_token",
    "remote_assignments_per_token",
    "rank_imbalance",
    "node_imbalance",
    "busiest_in",
    "busiest_out",
    "busiest_card",
    "bytes_per_token",
    "step_time_us",
}

LAYER_IDS = [2, 5, 6]

QUICK = ("--work-limit", 3000)


def flat(summary: dict[str, Any]) -> dict[str, float]:
    """A summary without nesting, for comparison to the last digit that is written or nearly so."""
    rows = {}
    for key, value in summary.items():
        parts = {f"{key}.{part}": v for part, v in value.items()} if isinstance(value, dict) else {key: value}
        rows |= parts
    return rows


def solve(run_cli: Any, trace: Path, output: Path, *options: object) -> dict[str, Any]:
    """A solve on 2 nodes of 2 GPUs; the document that it wrote."""
    result = run_cli("solve", trace, "-o", output, "--nodes", 2, "--gpus-per-node", 2, *QUICK, *options)
    assert result.code == 0, result.stderr
    return json.loads(output.read_bytes())


def held_out_trace(folder: Path, trace: Path, share: float, seed: int, write_trace: Any) -> Path:
    """A trace on disk of the requests that `solve` holds out."""
    _, held_out = split_requests(open_trace(trace), share, seed)
    blocks = list(held_out.blocks())
    ids = [np.concatenate([block.ids_TK(layer) for block in blocks]) for layer in range(len(LAYER_IDS))]
    write_trace(folder, ids_LTK=np.stack(ids), num_experts=12, layer_ids=LAYER_IDS, requests=1)
    return folder
