"""The example trace is what its card says, and the script that made it runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from placement.traces.trace import open_trace
from placement.workload.count import count

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_example_trace_is_a_recording_with_prefill_and_decode_of_every_domain() -> None:
    """What demo and documentation rely on: both phases and weights, no dead expert, and at most 4 MB."""
    folder = EXAMPLES / "traces"
    trace = open_trace(folder)
    card = (folder / "README.md").read_text()
    assert f"{trace.num_tokens_stored:,} tokens in {len(trace.requests)} requests" in card
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 4_000_000
    phases: dict[str | None, set[int]] = {}
    for block in trace.blocks():
        assert block.shard.has_weights
        for request, phase in zip(block.request_T, block.column_T("phase"), strict=True):
            phases.setdefault(trace.requests[request].domain, set()).add(int(phase))
    assert len(phases) == 9
    assert all(found == {0, 1} for found in phases.values())
    assert all(f"`{domain}`" in card for domain in phases)
    assert (count(trace).load_LE > 0).all()


def test_the_script_trains_saves_and_records(tmp_path: Path) -> None:
    """The preset for tests, on what Python alone brings along: three domains."""
    pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", minversion="5", reason="transformers 5 is not installed")
    command = [sys.executable, str(EXAMPLES / "train_tiny_moe.py"), "--preset", "smoke", "--threads", "1"]
    done = subprocess.run(
        [*command, "--texts", str(tmp_path), "-o", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out" / "model").num_experts == 8
    trace = open_trace(tmp_path / "out" / "trace")
    assert {entry.domain for entry in trace.requests} == {"arithmetic", "c", "python"}
    prompts = np.zeros(len(trace.requests), dtype=int)
    for block in trace.blocks():
        prompts += np.bincount(block.request_T[block.column_T("phase") == 0], minlength=len(prompts))
    assert prompts.min() >= 32
    assert prompts.max() <= 96


def test_the_card_names_the_versions_that_the_trace_was_made_with() -> None:
    """A recording is repeatable only with its seed, its texts and its versions."""
    card = (EXAMPLES / "traces" / "README.md").read_text()
    for what in ("seed 0", r"torch \d", r"transformers \d", "manpages-de 4", "r-cran-janeaustenr 1"):
        assert re.search(what, card), what
