"""The terminal tables show the summary's figures, fit in 80 columns and let no name control the terminal."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from placement import Solution
from placement.report.drawing.numbers import change, human_bytes, number, percent
from placement.report.solution.solution_tables import comparison_table, evaluation_table, headline

MakeSolution = Callable[..., Solution]


def printed(table: Table, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def with_gaps(solution: Solution, gaps: list[float | None]) -> Solution:
    bounds = [
        None if gap is None else layer.objective * (1 - gap) for layer, gap in zip(solution.layers, gaps, strict=True)
    ]
    layers = [
        replace(layer, gap=gap, bound=bound) for layer, gap, bound in zip(solution.layers, gaps, bounds, strict=True)
    ]
    return replace(solution, layers=tuple(layers))


def test_comparison_shows_every_map_on_both_parts(make_solution: MakeSolution) -> None:
    """The figures of the table are those of `summary()`, which files and the service show too."""
    solution = make_solution()
    text = printed(comparison_table(solution))
    for answers in (solution.held_out, solution.train):
        for name, answer in answers.items():
            summary = answer.summary()
            cells = (
                name,
                number(summary["node_sends_per_token"]),
                human_bytes(summary["bytes_per_token"]["node"]),
                f"{number(summary['rank_imbalance']['mean'])} ({number(summary['rank_imbalance']['max'])})",
                number(summary["node_imbalance"]["mean"]),
                number(summary["step_time_us"]),
            )
            assert any(all(cell in line for cell in cells) for line in text.splitlines()), (cells, text)


def test_comparison_is_not_cut_at_80_columns(make_solution: MakeSolution) -> None:
    """The widest figures that occur still fit: nothing is wrapped or shortened at 80 columns."""
    solution = make_solution(num_experts=16, slots_per_gpu=4)
    heavy = {}
    for name, answer in solution.held_out.items():
        load_LP = np.full_like(answer.load_LP, 1e-3)
        load_LP[:, 0] = 1e6
        heavy[name] = replace(
            answer,
            node_sends_L=answer.node_sends_L + 12.345,
            load_LP=load_LP,
            cluster=replace(answer.cluster, gpu_tflops=4.0),
        )
    table = comparison_table(replace(solution, held_out=heavy))
    text = printed(table)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert "4.00 (4.00)" in text
    wide = printed(table, width=200)
    assert [line.rstrip() for line in text.splitlines()] == [line.rstrip() for line in wide.splitlines()]


def test_evaluation_table_names_cannot_control_the_terminal(make_solution: MakeSolution) -> None:
    """File names are shown as they are, without markup or escape sequences; of long ones the end is kept."""
    answers = list(make_solution().train.values())
    text = printed(evaluation_table(["[red]a", "b\x1b[31m", "folder/" * 9 + "map.json"], answers))
    assert "[red]a" in text
    assert "\x1b" not in text
    assert "map.json" in text
    assert max(map(len, text.splitlines())) <= 80


def test_evaluation_table_compares_with_eplb_or_the_first(make_solution: MakeSolution) -> None:
    answers = list(make_solution().train.values())
    assert "eplb" in printed(evaluation_table(["a", "eplb", "c"], answers)).splitlines()[1]
    assert "first" in printed(evaluation_table(["a", "b", "c"], answers)).splitlines()[1]


def test_no_maps_give_an_empty_table() -> None:
    assert "map" in printed(evaluation_table([], []))


def test_headline_states_sends_imbalance_and_part(make_solution: MakeSolution) -> None:
    """The gain is that on held-out requests; without any, the words say training."""
    solution = make_solution()
    ratio = solution.held_out["auto"].node_sends_L.mean() / solution.held_out["eplb"].node_sends_L.mean()
    assert percent(abs(float(ratio) - 1)) in headline(solution)
    assert "on held-out requests" in headline(solution)
    assert "on training requests" in headline(make_solution(holdout=0))


@pytest.mark.parametrize(
    ("gaps", "words"),
    [
        ([None, None], "no bound was computed"),
        ([0.02, 0.04], "proven within 3.00% of the optimum (mean gap over layers"),
        ([None, 0.04], "proven within 4.00% of the optimum on the 1 of 2 layers bounded"),
        ([0.0, 0.0], "proven optimal"),
    ],
)
def test_headline_claims_no_more_than_is_proven(
    make_solution: MakeSolution, gaps: list[float | None], words: str
) -> None:
    assert words in headline(with_gaps(make_solution(), gaps))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"num_nodes": 1, "gpus_per_node": 4}, "No inter-node sends"),
        ({"solver": "eplb"}, "inter-node sends per token and layer"),
        ({"solver": "linear", "layer_ids": (0,)}, "inter-node sends"),
    ],
)
def test_headline_and_table_of_degenerate_cases(make_solution: MakeSolution, shape: dict[str, int], words: str) -> None:
    """One node, and a result that is itself a baseline: no division by zero, no nan."""
    solution = make_solution(**shape)
    text = headline(solution) + printed(comparison_table(solution))
    assert words in text
    assert "nan" not in text.lower().replace("tiny", "")


def test_numbers() -> None:
    """Three significant digits, separators, a real minus; a dash for what cannot be said."""
    assert [number(x) for x in (0, 1.6672, 0.04321, 11962.13, 99.96, 9.996, -2.5, None, float("nan"))] == [
        "0", "1.67", "0.0432", "11,962", "100", "10.0", "−2.50", "–", "–",
    ]  # fmt: skip
    assert [human_bytes(x) for x in (0, 36440.3, 999.6, 2.5e9)] == ["0 B", "36.4 kB", "1.00 kB", "2.50 GB"]
    assert [change(*x) for x in ((1.1, 1.0), (0.5, 1.0), (1, 1), (1, 0))] == ["+10.0%", "−50.0%", "0%", "–"]
