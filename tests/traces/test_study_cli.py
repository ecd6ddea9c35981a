"""`placement traces characterize`: tables, page, JSON, and refusals in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def trace(tmp_path: Path, run_cli: Any) -> Path:
    shape = ("--layers", "3", "--experts", "8", "--top-k", "2")
    assert run_cli("traces", "synth", *shape, "--tokens", 900, "--requests", 40, "-o", tmp_path / "t").code == 0
    return tmp_path / "t"


def test_tables_sentences_and_page(trace: Path, run_cli: Any, tmp_path: Path) -> None:
    """80 lines or less on stdout, in 100 columns; progress on stderr; the page where it was asked for."""
    result = run_cli("traces", "characterize", trace, "--nodes", 2, "--gpus-per-node", 2, "-o", tmp_path / "r.html")
    assert result.code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 100 and len(lines) < 80
    assert "counting tokens: 900/900" in result.stderr
    assert lines[-1] == f"wrote {tmp_path / 'r.html'}"
    assert (tmp_path / "r.html").read_text().startswith("<!DOCTYPE html>")
    assert "prefill" in result.stdout


def test_json_is_one_document(trace: Path, run_cli: Any, tmp_path: Path) -> None:
    """Schema, a row a layer, the domains; categories instead where asked for; workers change nothing."""
    result = run_cli("traces", "characterize", trace, "--json", "--workers", 1)
    assert (result.code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert document["schema"] == "trace-study/1"
    assert [layer["layer_id"] for layer in document["layers"]] == [0, 1, 2]
    assert document["first_part"] == "prefill" and document["by"] == "domain"
    assert run_cli("traces", "characterize", trace, "--json", "--workers", 3).stdout == result.stdout
    by_category = json.loads(run_cli("traces", "characterize", trace, "--json", "--by", "category").stdout)
    assert by_category["by"] == "category"


def test_a_file_of_counts_is_studied_too(run_cli: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "c.npy", np.random.default_rng(0).integers(1, 9, (6, 2, 8)))
    result = run_cli("traces", "characterize", tmp_path / "c.npy", "--top-k", 2)
    assert result.code == 0 and "counts without tokens" in result.stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--by", "size"), "domain, category"),
        (("--nodes", "0"), "nodes=0"),
        (("--nodes", "9"), "nodes=9"),
        (("--gpus-per-node", "3"), "gpus_per_node=3"),
        (("--seed", "-1"), "seed=-1"),
        (("--workers", "0"), "workers=0"),
        (("--top-k", "2"), "--top-k 2"),
        (("-o", "nowhere/r.html"), "nowhere"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_told_in_one_line(
    options: tuple[str, ...], told: str, trace: Path, run_cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_cli("traces", "characterize", trace, *options)
    assert (result.code, result.stdout) == (2, "")
    errors = [line for line in result.stderr.splitlines() if not line.startswith("counting")]
    assert len(errors) == 1 and told in errors[0], result.stderr
