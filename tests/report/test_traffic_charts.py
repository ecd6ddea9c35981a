"""The heat maps of traffic from node to node: their figures, their colours, and where there are none."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from html_page import Page

from placement import Evaluation, Solution
from placement.report.drawing.numbers import number
from placement.report.solution.solution_page import report_html
from placement.report.solution.traffic_charts import before_of, busiest_of, traffic_maps

MakeSolution = Callable[..., Solution]


def with_links(answer: Evaluation, links_NN: list[list[float]]) -> Evaluation:
    """The same in every layer."""
    return replace(answer, links_LNN=np.repeat(np.array(links_NN)[None], len(answer.links_LNN), axis=0))


def shades(svg: str) -> list[tuple[str, str, str]]:
    return re.findall(r'<path class="(below|above)" stroke-opacity="([\d.]+)" d="([^"]*)"', svg)


def test_links_and_sums_are_coloured_over_the_mean_of_the_map_before(make_solution: MakeSolution) -> None:
    """Homes are rows, sums stand last: a hot link is orange, a sum of half the mean node blue, home itself clear."""
    answer = make_solution().held_out["linear"]
    before = with_links(answer, [[0.0, 0.5], [0.5, 0.0]])
    after = with_links(answer, [[0.0, 1.0], [0.25, 0.0]])
    found = traffic_maps({"linear": before, "auto": after}, "")
    assert found is not None
    measure, reach, maps = found
    assert (measure, reach) == ("linear", 1.0)
    assert [shades(svg) for _, svg in maps] == [
        [],
        [("below", "0.5", "M0 1h1M2 1h1M0 2h1"), ("above", "1", "M1 0h2M1 2h1")],
    ]


def test_figures_of_every_link_stand_in_the_cells_of_few_nodes(make_solution: MakeSolution) -> None:
    """Every link, what each node gets and what leaves it can be read, and a pointer finds them with many nodes too."""
    answer = make_solution().held_out["auto"]
    found = traffic_maps({"auto": answer}, "")
    assert found is not None
    links_NN = answer.links_LNN.mean(axis=0)
    for value in (links_NN[0, 1], links_NN[1, 0], links_NN[:, 0].sum(), links_NN[1].sum()):
        assert f">{number(float(value))}</text>" in found[2][0][1]
    many = with_links(answer, (1.0 - np.eye(7)).tolist())
    svg = (traffic_maps({"auto": many}, "") or ("", 0.0, [("", "")]))[2][0][1]
    assert ">1.00</text>" not in svg and svg.count("<title>into node") == 7


def test_the_map_in_use_is_the_one_before(make_solution: MakeSolution) -> None:
    answer = make_solution().held_out["linear"]
    assert before_of({"linear": answer, "eplb": answer, "current": answer}) == "current"
    assert before_of({"eplb": answer, "linear": answer}) == "linear"
    assert before_of({"one.json": answer, "two.json": answer}) == "one.json"


def test_busiest_direction_and_rank_are_named(make_solution: MakeSolution) -> None:
    """A home that sends more than any node gets is told as such; a slow rank counts for more than its load."""
    answer = with_links(make_solution().held_out["linear"], [[0.0, 0.2, 0.2], [0.1, 0.0, 0.0], [0.1, 0.0, 0.0]])
    load_LP = np.ones_like(answer.load_LP)
    load_LP[:, 4] = 1.5  # rank 2
    slow = replace(answer.cluster, gpu_speeds=(1.0, 1.0, 1.0, 0.5))
    assert busiest_of(replace(answer, load_LP=load_LP), 0) == "busiest GPU rank 2, busiest link out of node 0"
    assert busiest_of(replace(answer, load_LP=load_LP, cluster=slow), 1).startswith("busiest GPU rank 3,")


def test_no_section_where_nothing_is_sent_or_sends_are_unknown(make_solution: MakeSolution) -> None:
    one_node = make_solution(num_nodes=1, gpus_per_node=4)
    assert "traffic" not in Page(report_html(one_node)).ids
    answer = make_solution().held_out["linear"]
    unknown = replace(answer, links_LNN=np.full_like(answer.links_LNN, np.nan))
    assert traffic_maps({"linear": unknown}, "") is None
    assert busiest_of(unknown, 0).count("busiest") == 1
    assert "traffic" in Page(report_html(make_solution())).ids
