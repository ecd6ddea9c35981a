"""Segments so short that small traces have several."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("placement.workload.segment.SEGMENT_TOKENS", 20)
