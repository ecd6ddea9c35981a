"""What the headline says where a placement cannot change what is sent."""

from __future__ import annotations

from typing import Any

import pytest

from placement import Cluster, Options, Solution, open_trace, solve
from placement.core.topology import Level, Topology
from placement.report.solution.solution_page import report_html
from placement.report.solution.summary import headline

NOTHING_BUT_BALANCE = "Every placement sends the same here"
RACKS = Topology(levels=(Level(name="rack", nodes=2, gbps=100.0),))
UNEVEN = Topology(node_gbps=(400.0, 400.0, 400.0, 100.0))


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory, write_trace: Any) -> Any:
    """`solved(slots_per_gpu, topology, **options)`: 8 experts on 4 nodes of a GPU, held-out requests measured."""
    trace = open_trace(write_trace(tmp_path_factory.mktemp("trace")).folder)

    def run(slots_per_gpu: int, topology: Topology, **options: Any) -> Solution:
        cluster = Cluster(num_nodes=4, gpus_per_node=1, slots_per_gpu=slots_per_gpu, topology=topology)
        return solve(trace, cluster, Options(work_limit=1000, **options), holdout=0.34, workers=1)

    return run


@pytest.mark.parametrize(
    ("slots", "topology", "transport", "fixed"),
    [
        (2, Topology(), "allgather", True),
        (3, UNEVEN, "allgather", True),
        (2, Topology(), "assignment", True),
        (2, RACKS, "assignment", True),  # all nodes are alike, if not all links
        (2, UNEVEN, "assignment", False),
        (3, Topology(), "assignment", False),
        (2, Topology(), "node", False),
    ],
)
def test_headline_says_that_nothing_but_balance_changes(
    solved: Any, slots: int, topology: Topology, transport: str, fixed: bool
) -> None:
    """In the terminal's line and on the page, and only where all maps really send the same."""
    solution = solved(slots, topology, transport=transport)
    line = headline(solution)
    assert (NOTHING_BUT_BALANCE in line) == fixed
    assert ("inter-node sends" in line) != fixed
    if fixed:
        assert f"(transport {transport})" in line and "nothing but balance" in line and "eplb" in line
        assert NOTHING_BUT_BALANCE in report_html(solution)
    sends = [answer.sends_L.mean() for answer in solution.held_out.values()]
    assert (max(sends) - min(sends) < 1e-9) == fixed


@pytest.mark.parametrize(
    ("topology", "words"),
    [
        (Topology(), "all alike"),
        (RACKS, "levels name rack; nodes 2; gbps 100.0"),
        (UNEVEN, "node_gbps 400.0, 400.0, 400.0, 100.0"),
        (Topology(rank_cost=((0.0, 1.0, 2.0, 3.0),) * 4), "rank_cost 4 × 4 numbers"),
    ],
    ids=["even", "racks", "uneven", "matrix"],
)
def test_page_says_how_links_differ(solved: Any, topology: Topology, words: str) -> None:
    """In words, without the brackets of a program, and no matrix of thousands of numbers."""
    page = report_html(solved(2, topology, solver="linear"))
    assert f"<dt>topology</dt><dd>{words}</dd>" in page


def test_headline_of_eplb_itself(solved: Any) -> None:
    """The result is not set beside itself."""
    line = headline(solved(2, Topology(), transport="allgather", solver="eplb"))
    assert NOTHING_BUT_BALANCE in line and "(eplb" not in line
