"""`placement traces convert`: what it says, and that large recordings take little time and memory."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converted_dumps import GOLDEN, dump, ids_of

from placement.readers.convert import convert
from placement.workload.counts_file import read_counts


def test_the_command_line(tmp_path: Path, run_cli: Any) -> None:
    """It says which format it took and why, what was left out, and the same as JSON; solve takes what it wrote."""
    source = GOLDEN / "sglang" / "per-token"
    shown = run_cli("traces", "convert", source, tmp_path / "a")
    assert shown.code == 0, shown.stderr
    assert "as sglang: " in shown.stdout and "16 warm-up tokens" in shown.stdout
    document = json.loads(run_cli("traces", "convert", source, tmp_path / "b", "--from", "sglang", "--json").stdout)
    assert document["reader"] == "sglang" and document["num_tokens"] == 17 and document["layer_ids"] == [1, 2]
    counts = tmp_path / "c.npz"
    assert run_cli("traces", "convert", GOLDEN / "sglang" / "stat", counts, "--top-k", 2).code == 0
    assert read_counts(counts).num_tokens == 17
    assert run_cli("traces", "info", tmp_path / "a").code == 0


@pytest.mark.parametrize("case", ["sglang/per-token", "vllm/responses", "vllm/arrays/a.npy", "arrays/npz/routes.npz"])
def test_solve_names_the_command_that_converts(case: str, run_cli: Any) -> None:
    """A recording given where a trace is wanted: the error says what to run."""
    result = run_cli("solve", GOLDEN / case, "--nodes", 2)
    assert result.code == 2 and f"placement traces convert {GOLDEN / case} OUT" in result.stderr.replace("\n", "")


def test_a_large_dump_converts_fast(tmp_path: Path) -> None:
    """61 layers, 20,000 tokens, top-8 of 256 experts: 5 million ids a second or more."""
    rng = np.random.default_rng(0)
    steps = np.cumsum(rng.integers(1, 32, 8)).astype(np.int32)
    ids = [(rng.integers(0, 256, (61, size, 1), dtype=np.int32) + steps) % 256 for size in (8192, 8192, 3616)]
    for one in ids:
        one[:3] = -1
    path = dump(tmp_path / "x.pt", ids, np.arange(256)[None].repeat(61, axis=0))
    convert(GOLDEN / "sglang" / "per-token", tmp_path / "compiled")
    best = 0.0
    for number in range(3):
        begin = time.perf_counter()
        done = convert(path, tmp_path / f"out-{number}")
        best = max(best, 61 * 20_000 * 8 / (time.perf_counter() - begin))
    assert done.num_tokens == 20_000 and done.model.layer_ids == tuple(range(3, 61))
    assert np.array_equal(ids_of(tmp_path / "out-0"), np.concatenate(ids, axis=1)[3:])
    assert best >= 5e6, f"{best:,.0f} ids a second"


def test_memory_does_not_grow_with_the_ids(tmp_path: Path) -> None:
    """Twice the dump takes at most a fifth of what it is larger, for its lists of positions: ids stay on disk."""
    rng = np.random.default_rng(0)
    steps = np.cumsum(rng.integers(1, 32, 8)).astype(np.int32)
    ids = [(rng.integers(0, 256, (48, 2000, 1), dtype=np.int32) + steps) % 256 for _ in range(4)]
    slots = np.arange(256)[None].repeat(48, axis=0)
    peaks, sizes = [], []
    convert(GOLDEN / "sglang" / "per-token", tmp_path / "loaded")
    for number, passes in enumerate((2, 4)):
        path = dump(tmp_path / f"{number}.pt", ids[:passes], slots)
        tracemalloc.start()
        convert(path, tmp_path / f"out-{number}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        sizes.append(path.stat().st_size)
    assert peaks[1] - peaks[0] < (sizes[1] - sizes[0]) / 5
