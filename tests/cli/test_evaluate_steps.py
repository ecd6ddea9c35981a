"""`placement evaluate --step-tokens`: what is printed, in both forms, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placement import evaluate_steps, load_placement, open_trace


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory, write_trace: Any, run_cli: Any) -> tuple[Path, Path, Path]:
    """A trace of both phases and two maps."""
    room = tmp_path_factory.mktemp("steps")
    phase_T = np.arange(600) % 3 > 0
    trace = write_trace(room / "trace", tokens=600, requests=40, phase_T=phase_T).folder
    for solver in ("linear", "eplb"):
        done = run_cli(
            "solve", trace, "--nodes", 2, "--gpus-per-node", 2, "--solver", solver, "-o", room / f"{solver}.json"
        )
        assert done.code == 0, done.stderr
    return trace, room / "linear.json", room / "eplb.json"


def test_json_has_the_figures_of_the_library(solved: tuple[Path, Path, Path], run_cli: Any) -> None:
    """Beside the summaries as without the option, whatever the number of workers."""
    trace, *maps = solved
    words = ("evaluate", trace, "--map", maps[0], "--map", maps[1], "--json")
    plain = json.loads(run_cli(*words).stdout)
    told = [
        json.loads(run_cli(*words, "--step-tokens", "4,16", "--seed", 3, "--workers", workers).stdout)
        for workers in (1, 3)
    ]
    assert told[0] == told[1]
    loaded = [load_placement(path) for path in maps]
    rows = evaluate_steps(
        open_trace(trace),
        [placement for placement, _ in loaded],
        step_tokens=(4, 16),
        cluster=[file.described_cluster() for _, file in loaded],
        seed=3,
    )
    assert [one.pop("steps") for one in told[0]["maps"]] == [[row.document() for row in of_map] for of_map in rows]
    assert told[0] == plain
    assert [(row.phase, row.tokens_per_gpu, row.steps, row.left_out) for row in rows[0]] == [
        ("prefill", 4, 12, 8),
        ("prefill", 16, 3, 8),
        ("decode", 4, 25, 0),
        ("decode", 16, 6, 16),
    ]


def test_the_table_fits_and_says_what_is_left_out(solved: tuple[Path, Path, Path], run_cli: Any) -> None:
    trace, *maps = solved
    done = run_cli("evaluate", trace, "--map", maps[0], "--map", maps[1], "--step-tokens", "4,64")
    assert done.code == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    for told in (
        "prefill, 4 a GPU",
        "12 steps",
        "decode, 64 a GPU",
        "1 step",
        "uniform router",
        "8 tokens, 200 tokens of prefill; 0 tokens, 144 tokens of decode",
    ):
        assert told in " ".join(done.stdout.split())


def test_a_report_shows_maps_and_steps(solved: tuple[Path, Path, Path], run_cli: Any, tmp_path: Path) -> None:
    """With `--json` too; a report in place of a map is refused before any work."""
    trace, *maps = solved
    words = ("evaluate", trace, "--map", maps[0], "--map", maps[1])
    done = run_cli(*words, "--step-tokens", "4", "--report", tmp_path / "r.html")
    assert done.code == 0 and f"wrote {tmp_path / 'r.html'}" in done.stdout.replace("\n", "")
    page = (tmp_path / "r.html").read_text()
    assert page.count("<strong>Busiest GPU</strong>") == 2 and str(maps[1]) in page
    again = run_cli(*words, "--step-tokens", "4", "--report", tmp_path / "s.html", "--json")
    assert json.loads(again.stdout)["maps"] and (tmp_path / "s.html").read_text() == page
    before = Path(maps[0]).read_bytes()
    refused = run_cli(*words, "--report", maps[0])
    assert refused.code == 2 and Path(maps[0]).read_bytes() == before


def test_homes_of_a_grouping_count(solved: tuple[Path, Path, Path], run_cli: Any, tmp_path: Path) -> None:
    """With the homes of a grouping file fewer copies leave than where tokens are dealt."""
    trace, *_ = solved
    words = ("--nodes", 2, "--gpus-per-node", 2)
    done = run_cli("group", trace, *words, "--placement-out", tmp_path / "m.json", "-o", tmp_path / "g.json")
    assert done.code == 0, done.stderr

    def sends(*more: Any) -> float:
        done = run_cli("evaluate", trace, "--map", tmp_path / "m.json", "--step-tokens", "4", "--json", *more)
        return json.loads(done.stdout)["maps"][0]["steps"][-1]["map"]["sends"]["mean"]

    assert sends("--grouping", tmp_path / "g.json") < 0.95 * sends()


@pytest.mark.parametrize(
    ("sizes", "told"),
    [("16,,64", "an empty place"), ("0", "from 1 to 2^24"), ("16, 64", "' 64'"), ("101", "at most 100 are allowed")],
)
def test_what_is_no_size_is_refused(sizes: str, told: str, solved: tuple[Path, Path, Path], run_cli: Any) -> None:
    """One line that says what is allowed, and exit code 2."""
    done = run_cli("evaluate", solved[0], "--map", solved[1], "--step-tokens", sizes)
    assert (done.code, done.stdout) == (2, "")
    assert told in done.stderr and len(done.stderr.splitlines()) == 1
