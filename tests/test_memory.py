"""What cannot fit in memory is refused in words, before the system ends the process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placement.core.model import Model
from placement.errors import InputError
from placement.support import memory

MANY = 65_536


@pytest.mark.parametrize("command", [("solve", "--nodes", 2), ("traces", "info"), ("traces", "count", "-o", "counts")])
def test_pairs_of_too_many_experts_are_refused(
    command: tuple[object, ...], tmp_path: Path, run_cli: Any, write_trace: Any
) -> None:
    """A trace may name 65,536 experts in a few bytes: their pairs take 34 GB in each layer."""
    write_trace(tmp_path / "trace", num_experts=MANY)
    words = [one if one != "counts" else tmp_path / "counts" for one in command]
    result = run_cli(*words, tmp_path / "trace")
    assert result.code == 2
    assert "65,536 experts are too many" in result.stderr


def test_counts_of_too_many_experts_are_refused(tmp_path: Path, run_cli: Any) -> None:
    counts = np.ones((8, MANY), dtype=np.int32)
    np.savez(tmp_path / "counts.npz", counts=counts, top_k=1)
    result = run_cli("solve", tmp_path / "counts.npz", "--nodes", 2, "--objective", "balance")
    assert result.code == 2
    assert "65,536 experts are too many" in result.stderr


def test_a_container_has_less_than_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of a container counts; where there is none it says so in a word, or there is no such file."""
    limits = [tmp_path / name for name in ("limited", "unlimited", "absent")]
    limits[0].write_text("1000000\n")
    limits[1].write_text("max\n")
    monkeypatch.setattr(memory, "CONTAINER_LIMITS", [str(path) for path in limits[1:]])
    assert memory.machine_bytes() > 1_000_000
    monkeypatch.setattr(memory, "CONTAINER_LIMITS", [str(path) for path in limits])
    assert memory.machine_bytes() == 1_000_000
    model = Model(name="small", layer_ids=(0,), num_experts=8, top_k=2)
    memory.check_fits_memory(model, 1_000_000)
    with pytest.raises(InputError, match="are too many"):
        memory.check_fits_memory(model, 1_000_001)
