"""The front of whole placements: `solve_front`, `placement front`, its files, table and plot."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from placement import Cluster, Options, load_placement, open_trace
from placement.errors import OutputError
from placement.pipeline.documents.front_files import front_document, save_front
from placement.pipeline.front import solve_front
from placement.pipeline.front_search import WEIGHTS
from placement.pipeline.front_solution import Front
from placement.report.drawing.numbers import number
from placement.report.front.front_report import front_svg, front_table

SHAPE = ("--nodes", 2, "--gpus-per-node", 2, "--work-limit", 500)
CLUSTER = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=4)
CAP = 1.3


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory, write_trace: Any) -> Path:
    """Three layers of 16 experts; requests have tastes."""
    folder = tmp_path_factory.mktemp("traces") / "tiny"
    write_trace(folder, num_layers=3, num_experts=16, top_k=3, tokens=600, requests=20, spread=1.5, seed=4)
    return folder


@pytest.fixture(scope="module")
def front(trace: Path) -> Front:
    return solve_front(open_trace(trace), CLUSTER, Options(work_limit=500), workers=1)


@pytest.fixture(scope="module")
def capped(trace: Path) -> Front:
    return solve_front(open_trace(trace), CLUSTER, Options(work_limit=500, max_imbalance=CAP), workers=1)


def test_the_front_is_one(front: Front) -> None:
    """By ascending weight paid sends rise and expected imbalance falls, strictly: none dominates another; the default
    weight is chosen, with bounds; the maps trade something at all."""
    weights = [point.weight for point in front.points]
    assert weights == sorted(weights) and set(weights) <= set(WEIGHTS)
    for one, other in zip(front.points, front.points[1:], strict=False):
        assert one.paid_sends < other.paid_sends
        assert one.expected_imbalance > other.expected_imbalance
    assert len(front.points) > 3
    assert front.chosen.weight == 1.5 and front.chosen in front.points
    for point in front.points:
        assert all((layer.bound is not None) == (point is front.chosen) for layer in point.solution.layers)
        assert set(point.solution.train) == set(point.solution.held_out) == {"linear", "eplb", "auto"}


def test_objectives_are_those_of_the_weights(front: Front) -> None:
    """The reports of the layers add up to sends and expected imbalance at the point's weight; sends are measured."""
    for point in front.points:
        objective = sum(layer.objective for layer in point.solution.layers) / 3
        assert objective == pytest.approx(point.paid_sends + point.weight * point.expected_imbalance)
        measured = point.solution.train["auto"].sends_L.mean()  # all tokens are in the sample
        assert point.sends == pytest.approx(measured)


def test_the_cap_holds_in_every_layer(front: Front, capped: Front) -> None:
    """The picked placement keeps the cap on the training requests; the points of the weights are what they were."""
    assert capped.chosen is capped.points[-1] and capped.chosen.weight is None
    assert capped.solution.train["auto"].rank_imbalance_L().max() <= CAP + 1e-9
    free = {point.weight: point for point in front.points}
    for point in capped.points[:-1]:
        assert (point.solution.placement.phy2log_LP == free[point.weight].solution.placement.phy2log_LP).all()
        if point.solution.train["auto"].rank_imbalance_L().max() <= CAP:
            assert capped.chosen.paid_sends <= point.paid_sends + 1e-12


def test_a_weight_of_ones_own(trace: Path) -> None:
    """The weight that is asked for is on the front, chosen, even where a standard weight gives the same maps."""
    front = solve_front(open_trace(trace), CLUSTER, Options(work_limit=500, balance_weight=11.9), workers=1, holdout=0)
    assert front.chosen.weight == 11.9
    assert front.solution.held_out == {}
    assert front_document(front)["points"][0]["held_out"] is None
    assert "held-out" not in front_svg(front)


def test_files(trace: Path, tmp_path: Path, run_cli: Any) -> None:
    """The same bytes with one worker and two; `front.json` names all files but the plot; each is a sound placement file
    with the figures that `front.json` has; -o is the chosen one; the terminal shows the front."""
    for workers in (1, 2):
        result = run_cli(
            *("front", trace, "-o", tmp_path / f"{workers}.json", "--front-out", tmp_path / "deep" / f"{workers}"),
            *("--max-imbalance", CAP, "--workers", workers, *SHAPE),
        )
        assert result.code == 0, result.stderr
    folder, other = tmp_path / "deep" / "1", tmp_path / "deep" / "2"
    document = json.loads((folder / "front.json").read_bytes())
    names = {point["file"] for point in document["points"]}
    assert {path.name for path in folder.iterdir()} == names | {"front.json", "front.svg"}
    for path in folder.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes(), path.name
    assert document["schema"] == "expert-front/1"
    assert document["chosen"] == "capped.json"
    assert (folder / "capped.json").read_bytes() == (tmp_path / "1.json").read_bytes()
    for point in document["points"]:
        _, file = load_placement(folder / point["file"])
        assert file.evaluation is not None
        for side in ("train", "held_out"):
            summary = getattr(file.evaluation, side)["auto"]
            assert summary.sends_per_token == point[side]["sends_per_token"]
            assert summary.rank_imbalance.model_dump() == point[side]["rank_imbalance"]
    assert "cap 1.3" in result.stdout


def test_the_table_fits(front: Front, capped: Front) -> None:
    """80 columns are enough, for the cap's row too; the chosen row alone is bold."""
    for one in (front, capped):
        console = Console(width=80)
        with console.capture() as seen:
            console.print(front_table(one))
        assert "…" not in seen.get()
        assert [row.style == "bold" for row in front_table(one).rows] == [point is one.chosen for point in one.points]


def test_the_picture_shows_every_point(front: Front) -> None:
    """A file that stands alone: each point of each side with its figures, the chosen one named, nothing fetched."""
    text = front_svg(front)
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.get("aria-label")
    tips = [title.text or "" for title in root.iter("{http://www.w3.org/2000/svg}title")]
    for side in ("train", "held_out"):
        for point in front.points:
            answer = getattr(point.solution, side)["auto"]
            told = f"{number(answer.sends_L.mean())} sends, imbalance {number(answer.rank_imbalance_L().mean())}"
            assert any(tip.startswith("front, ") and tip.endswith(told) for tip in tips)
    words = [part.text for part in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "1.5, chosen" in words
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|url\(|@import|<script", text)
    assert front_svg(front) == text


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--objective", "balance"), "--objective locality"),
        (("--objective", "time"), "objective='time'"),
        (("--transport", "allgather"), "allgather"),
        (("--solver", "eplb"), "--solver auto or anneal"),
        (("--holdout", 1), "holdout=1"),
        (("--max-imbalance", 0.5), "max_imbalance=0.5"),
        (("-o", "DIR/placement.json"), "front/placement.json: No such file or directory"),
        (("-o", "DIR"), "are both"),
        (("--front-out", "TRACE/trace.json"), "is a file"),
        (("--front-out", "TRACE/trace.json/front"), "is a file"),
        (("--front-out", "/proc/front"), "/proc/front"),
    ],
)
def test_bad_input(trace: Path, tmp_path: Path, run_cli: Any, options: tuple[str, ...], told: str) -> None:
    """One line that names what is wrong, exit code 2, and neither a file nor the folder is left."""
    folder = tmp_path / "front"
    given = [str(part).replace("TRACE", str(trace)).replace("DIR", str(folder)) for part in options]
    result = run_cli("front", trace, "-o", tmp_path / "p.json", "--front-out", folder, *SHAPE, *given)
    assert result.code == 2
    lines = [line for line in result.stderr.splitlines() if line.startswith("placement: error:")]
    assert len(lines) == 1 and told in lines[0], result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_cap_that_cannot_be_met(trace: Path, tmp_path: Path, run_cli: Any) -> None:
    """A limit or proof of infeasibility is told as without a front, and nothing is written."""
    arguments = (trace, "-o", tmp_path / "p.json", "--max-imbalance", 1.0, *SHAPE)
    result = run_cli("front", *arguments, "--front-out", tmp_path / "front")
    assert result.code == run_cli("solve", *arguments).code
    assert result.code in (3, 4)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_vanishes(front: Front, tmp_path: Path) -> None:
    """A file in the place of the folder is an OutputError."""
    (tmp_path / "front").write_text("")
    with pytest.raises(OutputError):
        save_front(tmp_path / "front", front)
