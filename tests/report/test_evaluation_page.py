"""The page of measured maps: well-formed, with the figures of the maps and of their steps, and no others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from html_page import Page

from placement import Cluster, Placement, Trace, evaluate, evaluate_steps, open_trace
from placement.analysis.advise.steps import Steps
from placement.cost.steps.spread import SHARES, Spread
from placement.report.drawing.numbers import mean_max, number
from placement.report.evaluation.evaluation_page import evaluation_html
from placement.report.steps.step_charts import step_charts

LOOKS = {"a": ("s2", "diamond"), "b": ("s1", "square")}


@pytest.fixture
def trace(tmp_path: Path, write_trace: Any) -> Trace:
    rng = np.random.default_rng(0)
    ids_LTK = np.argsort(rng.random((2, 300, 8)), axis=2)[:, :, :2]
    phase_T = (np.arange(300) % 3 > 0).astype(int)
    write_trace(
        tmp_path / "t", ids_LTK=ids_LTK, num_experts=8, request_T=np.arange(300) // 30, requests=10, phase_T=phase_T
    )
    return open_trace(tmp_path / "t")


def maps(trace: Trace, num_nodes: int = 2) -> list[Placement]:
    rng = np.random.default_rng(1)
    shape = {"num_nodes": num_nodes, "gpus_per_node": 4 // num_nodes, "slots_per_gpu": 2}
    rows = [np.stack([rng.permutation(8) for _ in range(2)]) for _ in range(2)]
    return [Placement(model=trace.model, **shape, phy2log_LP=row) for row in rows]


@pytest.mark.parametrize("num_nodes", [1, 2, 4])
@pytest.mark.parametrize("sizes", [None, (2, 30)])
def test_page_shows_every_map(trace: Trace, num_nodes: int, sizes: tuple[int, ...] | None) -> None:
    """Well-formed, fetches nothing, the same every time; of one node no traffic; maps of one name are told apart."""
    placements = maps(trace, num_nodes)
    answers = evaluate(trace, placements)
    steps = None if sizes is None else evaluate_steps(trace, placements, step_tokens=sizes)
    names = ["<b>&.json"] * 2
    text = evaluation_html(trace.model, names, answers, rule="as asked", steps=steps)
    assert text == evaluation_html(trace.model, names, answers, rule="as asked", steps=steps)
    page = Page(text)
    assert len(page.ids) == len(set(page.ids)) and set(page.labels) <= set(page.ids)
    assert not page.addresses and not re.search(r"https?:|url\(|@import|javascript:", text)
    assert page.scoped and page.images_are_described and "b" not in page.tags
    assert ("traffic" in page.ids) == (num_nodes > 1) and ("steps" in page.ids) == (sizes is not None)
    words = "".join(page.words)
    assert not re.search(r"\bnan\b|\binf\b|None", words)
    assert "<b>&.json (2)" in words and "as asked" in words
    for answer in answers:
        summary = answer.summary()
        assert number(summary["step_time_us"]) in words
        for what in ("rank_imbalance", "busiest_in", "busiest_out"):
            assert mean_max(summary[what]) in words


def test_spread_over_steps_is_drawn_for_every_map_and_the_uniform_router(trace: Trace) -> None:
    """Each has its mean, its median and both ends of its bars in its tip; a size that no step fills is left out."""
    costs = evaluate_steps(trace, maps(trace), step_tokens=[2, 30, 4])
    sizes = Steps(costs=dict(zip(LOOKS, costs, strict=True))).sizes
    assert [(one.phase, one.tokens_per_gpu) for one in sizes if one.tokens_per_gpu == 30] == [("decode", 30)]
    charts = step_charts(sizes, LOOKS)
    assert [phase for phase, _ in charts] == ["prefill", "decode"]
    for phase, (gpu, link) in charts:
        mine = [one for one in sizes if one.phase == phase]
        for svg, figure in ((gpu, "busiest_gpu"), (link, "busiest_link")):
            tips = re.findall(r"<title>([^<]*)</title>", svg)
            assert len(tips) == 3 * len(mine)
            for one in mine:
                for name, of in (one.maps | {"uniform router": one.uniform}).items():
                    over = getattr(of, figure)
                    (tip,) = [tip for tip in tips if tip.startswith(f"{name}, {one.tokens_per_gpu} tokens a GPU:")]
                    least, _, middle, _, most = map(number, over.quantiles)
                    for told in (f"mean {number(over.mean)}", f"median {middle}", f"below {least}", f"above {most}"):
                        assert told in tip


@pytest.mark.parametrize("size", [1, 3, 100, 5000])
def test_quantiles_are_those_of_the_steps(size: int) -> None:
    """Each is the least figure that so many of the steps do not exceed, to within 0.03%; they come in any pieces."""
    values = np.random.default_rng(size).exponential(size=size)
    spread = Spread()
    for piece in np.array_split(values, 3):
        spread.add(piece)
    wanted = [np.sort(values)[-(-round(100 * share) * size // 100) - 1] for share in SHARES]
    np.testing.assert_allclose(spread.over_steps().quantiles, wanted, rtol=3e-4)
    assert spread.over_steps().p99 == spread.over_steps().quantiles[-1]


def test_maps_for_different_clusters_are_told_apart(trace: Trace) -> None:
    """The floor is that of the first one's cluster, and it is said so."""
    placements = maps(trace)
    clusters = [Cluster.of(placements[0]), Cluster(**placements[0].sizes(), gpu_speeds=(1.0, 1.0, 1.0, 0.5))]
    answers = evaluate(trace, placements, cluster=clusters)
    steps = evaluate_steps(trace, placements, step_tokens=[2], cluster=clusters)
    text = evaluation_html(trace.model, ["one", "two"], answers, rule="", steps=steps)
    assert "on the cluster of one." in text
    assert "different clusters" not in evaluation_html(trace.model, ["one"], answers[:1], rule="", steps=steps[:1])
