"""Each map on each part of the traffic: what the terminal and the page show is what was measured."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from placement import Cluster, Options, Solution, open_trace, solve
from placement.report.drawing.numbers import number
from placement.report.solution.part_tables import part_table, terminal_part_table
from placement.report.solution.solution_page import report_html
from placement.report.solution.solution_tables import headline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_trace: Any) -> Path:
    """Three domains of 8 requests; one has a name that is no HTML."""
    path: Path = write_trace(tmp_path_factory.mktemp("trace"), tokens=2400, requests=24, spread=2.0).folder
    manifest = json.loads((path / "trace.json").read_text())
    for q, request in enumerate(manifest["requests"]):
        request["domain"] = ("<b>&", "law", "x" * 60)[q % 3]
    (path / "trace.json").write_text(json.dumps(manifest))
    return path


def solved(folder: Path, **more: Any) -> Solution:
    cluster = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=2)
    options = Options(work_limit=300, bound="none")
    return solve(open_trace(folder), cluster, options, workers=1, **{"by_domain": True} | more)


def text_of(solution: Solution) -> str:
    shown = io.StringIO()
    Console(file=shown, width=80).print(terminal_part_table(solution))
    return shown.getvalue()


def test_the_terminal_shows_worst_and_mean_of_a_robust_solve(folder: Path) -> None:
    """Costs are sends and imbalance at their prices on held-out requests; 80 columns are enough."""
    solution = solved(folder, robust="domain")
    figures = solution.parts
    assert figures is not None
    cost_MW = np.array(
        [[a[m].sends_L.mean() + 1.5 * a[m].rank_imbalance_L().mean() for a in figures.held_out] for m in solution.maps]
    )
    lines = text_of(solution).splitlines()
    assert max(map(len, lines)) <= 80
    worst, mean = (next(line for line in lines if line.startswith(f"{what} cost")) for what in ("worst", "mean"))
    assert worst.split()[2:] == [number(float(cost)) for cost in cost_MW.max(axis=1)]
    assert mean.split()[2:] == [number(float(cost)) for cost in cost_MW.mean(axis=1)]
    assert f"The worst domain costs {number(float(cost_MW[3].max()))}" in headline(solution)


def test_the_page_shows_domains_though_none_were_asked_for(folder: Path) -> None:
    """Names are escaped; a plain solve has the table on the page and not in the terminal or the file."""
    solution = solved(folder)
    page = report_html(solution)
    assert "Each map on each domain" in page and "&lt;b&gt;&amp;" in page and "<b>&" not in page
    table = part_table(solution)
    assert table is not None and [name for name, *_ in table.rows] == ["<b>&", "law", "x" * 60]
    assert solution.parts is not None
    for (_, tokens, cells), answers in zip(table.rows, solution.parts.shown()[1], strict=True):
        assert cells[2][0] == number(float(answers["auto"].sends_L.mean()))
        assert tokens == answers["auto"].num_tokens
    assert all(sum(cells[m][4] for *_, cells in table.rows) == 1 for m in range(3)), "one worst part for each map"
    assert terminal_part_table(solution) is None


def test_training_figures_are_shown_where_none_were_held_out(folder: Path) -> None:
    """And the page says so; of requests without domains there is no table at all."""
    table = part_table(solved(folder, holdout=0))
    assert table is not None and table.shown == "training"
    solution = solved(folder, holdout=0, robust="windows:2")
    assert "by window, training requests" in text_of(solution)


def test_no_domains_no_table(tmp_path: Path, write_trace: Any) -> None:
    """The page stands without it."""
    solution = solved(write_trace(tmp_path / "t").folder)
    assert solution.parts is None
    assert "Each map on each" not in report_html(solution)
