"""`placement traces info --study`: tables, page, JSON, and refusals in one line."""

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
    """90 lines or less on stdout, in 100 columns; progress on stderr; the page where it was asked for."""
    result = run_cli("traces", "info", trace, "--nodes", 2, "--gpus-per-node", 2, "--report", tmp_path / "r.html")
    assert result.code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 100 and len(lines) < 90
    assert "counting tokens: 900/900" in result.stderr
    assert lines[-1] == f"wrote {tmp_path / 'r.html'}"
    assert (tmp_path / "r.html").read_text().startswith("<!DOCTYPE html>")
    assert "prefill" in result.stdout


def test_json_is_one_document(trace: Path, run_cli: Any, tmp_path: Path) -> None:
    """Schema, a row a layer, the domains; categories instead where asked for; workers change nothing."""
    result = run_cli("traces", "info", trace, "--study", "--json", "--workers", 1)
    assert (result.code, result.stderr) == (0, "")
    facts = json.loads(result.stdout)
    document = facts.pop("study")
    assert facts == json.loads(run_cli("traces", "info", trace, "--json").stdout), "the facts are those without a study"
    assert document["schema"] == "trace-study/1"
    assert [layer["layer_id"] for layer in document["layers"]] == [0, 1, 2]
    assert document["first_part"] == "prefill" and document["by"] == "domain"
    assert run_cli("traces", "info", trace, "--study", "--json", "--workers", 3).stdout == result.stdout
    by_category = json.loads(run_cli("traces", "info", trace, "--study", "--json", "--by", "category").stdout)["study"]
    assert by_category["by"] == "category"


def test_a_file_of_counts_is_studied_too(run_cli: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "c.npy", np.random.default_rng(0).integers(1, 9, (6, 2, 8)))
    for more in ((), ("--study",)):
        result = run_cli("traces", "info", tmp_path / "c.npy", "--top-k", 2, *more)
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
        (("--report", "nowhere/r.html"), "nowhere"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_told_in_one_line(
    options: tuple[str, ...], told: str, trace: Path, run_cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_cli("traces", "info", trace, "--study", *options)
    assert (result.code, result.stdout) == (2, "")
    errors = [line for line in result.stderr.splitlines() if not line.startswith("counting")]
    assert len(errors) == 1 and told in errors[0], result.stderr


@pytest.mark.parametrize("option", [("--by", "domain"), ("--nodes", "2"), ("--gpus-per-node", "2"), ("--seed", "1")])
def test_options_of_the_study_ask_for_it(option: tuple[str, str], trace: Path, run_cli: Any) -> None:
    """Without a study they would change nothing."""
    result = run_cli("traces", "info", trace, *option)
    assert (result.code, result.stdout) == (2, "")
    assert f"{option[0]} is of the study; add --study" in result.stderr
