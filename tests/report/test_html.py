"""The HTML report is one well-formed file that fetches nothing, escapes every name and is the same every time."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from subprocess import run
from typing import Any

import numpy as np
import pytest
from html_page import Page

from placement import Solution
from placement.core.shape import Shape
from placement.report.drawing.numbers import human_bytes, number
from placement.report.solution.solution_charts import rank_heatmap
from placement.report.solution.solution_page import report_html
from placement.report.solution.solution_tables import headline

MakeSolution = Callable[..., Solution]

CASES: list[dict[str, Any]] = [
    {},
    {"layer_ids": (5,)},
    {"holdout": 0},
    {"num_nodes": 1, "gpus_per_node": 4},
    {"num_nodes": 1, "gpus_per_node": 1, "slots_per_gpu": 8},
    {"solver": "eplb", "slots_per_gpu": 3},
    {"solver": "linear", "slots_per_gpu": 3, "holdout": 0},
    {"name": "<script>alert('&')</script>\x00"},
]


@pytest.mark.parametrize("shape", CASES, ids=str)
def test_page_is_well_formed_and_fetches_nothing(make_solution: MakeSolution, shape: dict[str, Any]) -> None:
    """Every tag is closed in order, ids are unique, and no address leads out of the file."""
    text = report_html(make_solution(**shape))
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert set(page.labels) <= set(page.ids)
    assert all(address.startswith("#") for address in page.addresses)
    assert not re.search(r"https?:|url\(|@import|javascript:", text)
    assert "script" not in page.tags
    assert page.scoped
    assert page.images_are_described
    assert page.tags.count("h1") == 1
    assert page.tags.count("caption") >= 2
    assert not re.search(r"\bnan\b|\binf\b|None", "".join(page.words).replace("“None”", ""))
    assert text.encode() == text.encode("utf-8", "strict")


@pytest.mark.parametrize("shape", [{}, {"holdout": 0}, {"solver": "eplb", "slots_per_gpu": 3}], ids=str)
def test_page_shows_the_figures_of_the_summary(make_solution: MakeSolution, shape: dict[str, Any]) -> None:
    solution = make_solution(**shape)
    words = "".join(Page(report_html(solution)).words)
    assert headline(solution) in words
    assert solution.input_hash in words
    for answers in (solution.train, solution.held_out):
        for answer in answers.values():
            summary = answer.summary()
            assert number(summary["node_sends_per_token"]) in words
            assert human_bytes(summary["bytes_per_token"]["node"]) in words
            assert number(summary["step_time_us"]) in words
            for kind in ("rank_imbalance", "node_imbalance"):
                assert f"{number(summary[kind]['mean'])} ({number(summary[kind]['max'])})" in words


def test_page_shows_bounds_and_gaps(make_solution: MakeSolution) -> None:
    """A bound is shown for the layer that has one, the word none for the layer that has not."""
    solution = make_solution()
    first, second = solution.layers
    bounded = replace(first, status="optimal", bound=first.objective, gap=0.0)
    bare = replace(second, bound=None, gap=None)
    rows = re.findall(r'<tr><th scope="row">\d+</th>.*?</tr>', report_html(replace(solution, layers=(bounded, bare))))
    assert "<td>optimal</td>" not in rows[0] and "optimal" in rows[0] and "<td>0%</td>" in rows[0]
    assert rows[1].count("<td>none</td>") == 2


def test_same_solution_gives_same_bytes(make_solution: MakeSolution) -> None:
    """No dates, no random ids: two solves of the same trace give the same page."""
    assert report_html(make_solution()) == report_html(make_solution())


def test_every_expert_of_every_layer_is_on_the_map(make_solution: MakeSolution) -> None:
    """The map lists each slot once, and experts with several slots are marked."""
    solution = make_solution(solver="eplb", slots_per_gpu=3)
    cells = re.findall(r'<b class="h\d( r)?">(\d+)</b>', report_html(solution).partition("<details")[2])
    assert sorted(int(expert) for _, expert in cells) == sorted(solution.placement.phy2log_LP.ravel().tolist())
    copies_LE = solution.placement.copies_LE()
    assert sum(bool(mark) for mark, _ in cells) == int(copies_LE[copies_LE > 1].sum())


def test_names_are_escaped(make_solution: MakeSolution) -> None:
    """A model's name comes from a file that anyone may have written."""
    text = report_html(make_solution(name="<script>alert(1)</script>"))
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_broken_characters_in_a_name_do_not_break_the_file(make_solution: MakeSolution) -> None:
    """JSON can carry half of a surrogate pair; the page can still be written as UTF-8."""
    solution = make_solution()
    model = replace(solution.placement.model, name="a\ud800b\x00")
    text = report_html(
        replace(solution, maps=solution.maps | {solution.result_name: replace(solution.placement, model=model)})
    )
    assert "a\ufffdb\ufffd" in text
    assert text.encode("utf-8", "strict")


def test_large_models_give_a_file_that_a_browser_can_take(make_solution: MakeSolution) -> None:
    """Cells, the bulk of the page for a large model, stay small: 94 layers of 512 slots must remain under 5 MB."""
    few, many = (
        len(report_html(make_solution(solver="linear", num_experts=n, slots_per_gpu=n // 4)).encode())
        for n in (16, 256)
    )
    assert (many - few) / (2 * 240) < 40


def test_nothing_heavy_is_imported_before_a_report_is_made() -> None:
    """Commands that make no report do not wait for jinja2 or matplotlib."""
    code = (
        "import sys, placement.report.solution.solution_page, placement.report.solution.solution_tables\n"
        "print({'jinja2', 'matplotlib'} & set(sys.modules))"
    )
    answer = run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"


def test_the_hottest_layer_is_always_named_on_a_heatmap() -> None:
    """In bold, wherever the layer lies, and without a number that would touch it."""
    shape = Shape(num_nodes=1, gpus_per_node=2, slots_per_gpu=1)
    for hottest in (0, 1, 37, 59):
        ratio_LG = np.ones((60, 2))
        ratio_LG[hottest, 1] = 1.9
        svg = rank_heatmap(ratio_LG, range(3, 63), 1.0, shape, "under eplb")
        found = re.findall(r'<text( class="strong")? x="([\d.]+)" y="[\d.]+" text-anchor="middle">(\d+)<', svg)
        assert [int(number) for bold, _, number in found if bold] == [hottest + 3]
        places = sorted(float(x) for _, x, _ in found)
        assert min(np.diff(places)) > 16
        assert f"the most in layer {hottest + 3}." in svg


def test_heatmap_has_the_right_shades() -> None:
    """Ranks down, layers across: blue below the mean, orange above, clear at the mean; neighbours alike are one run."""
    shape = Shape(num_nodes=1, gpus_per_node=3, slots_per_gpu=1)
    svg = rank_heatmap(np.array([[0.0, 1.5, 2.0], [1.0, 9.0, 2.0]]), (3, 7), 1.0, shape, "under eplb")
    runs = re.findall(r'<path class="(below|above)" stroke-opacity="([\d.]+)" d="([^"]*)"', svg)
    assert runs == [("below", "1", "M0 0h1"), ("above", "0.5", "M0 1h1"), ("above", "1", "M1 1h1M0 2h2")]
