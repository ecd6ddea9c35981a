"""Tokens gathered from many blocks: every one once, with its own request, in a mixed order of bounded length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placement import open_trace
from placement.traces import token_order


@pytest.mark.parametrize("limit", [1, 250, 10_000])
def test_every_token_comes_once(limit: int, tmp_path: Path, write_trace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fits together, layers and requests stay aligned; a block never waits for more than the limit allows."""
    written = write_trace(tmp_path / "t", num_layers=2, num_experts=16, top_k=3, tokens=700, requests=5)
    monkeypatch.setattr(token_order, "MIXED_TOKENS", limit)
    trace = open_trace(written.folder)

    def rows(mixed: bool) -> list[tuple[int, ...]]:
        parts = [
            np.column_stack([tokens.request_T, tokens.ids_TK(0), tokens.ids_TK(1)])
            for tokens in token_order.token_batches(trace, mixed=mixed)
        ]
        if mixed:
            blocks = [len(block.request_T) for block in trace.blocks()]
            assert all(len(part) <= max(limit, *blocks) for part in parts)
        return [tuple(row) for row in np.concatenate(parts).tolist()]

    assert rows(mixed=True) != rows(mixed=False)
    assert sorted(rows(mixed=True)) == sorted(rows(mixed=False))
    assert rows(mixed=True) == rows(mixed=True)


def test_requests_are_mixed(tmp_path: Path, write_trace: Any) -> None:
    """The first tenth of the tokens holds all requests, though they are stored one after another."""
    written = write_trace(tmp_path / "t", num_layers=1, num_experts=16, top_k=3, tokens=1000, requests=5)
    (tokens,) = token_order.token_batches(open_trace(written.folder), mixed=True)
    assert len(set(tokens.request_T[:100].tolist())) == 5
