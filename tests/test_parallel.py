"""Cores that work is spread over."""

from __future__ import annotations

from pathlib import Path

import pytest

from placement.support import parallel


@pytest.mark.parametrize(
    ("limit", "cores"),
    [
        ("max 100000", 64),
        ("400000 100000", 4),
        ("150000 100000", 2),
        ("20000 100000", 1),
        ("9900000 100000", 64),
        ("", 64),
        ("nonsense here", 64),
        ("100000 0", 64),
    ],
)
def test_a_container_has_the_cores_of_its_limit(
    limit: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large machine too: threads beyond the limit would only wait for one another."""
    (tmp_path / "cpu.max").write_text(limit)
    monkeypatch.setattr(parallel, "CPU_LIMIT", tmp_path / "cpu.max")
    monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert parallel.usable_cores() == cores


def test_without_a_container_the_machine_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "CPU_LIMIT", tmp_path / "absent")
    monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert parallel.usable_cores() == 2
