"""The steps on a job's page are those that a job of its kind tells of."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
from placement_api.answers import JobAnswer
from placement_api.bodies import AdviseBody, Body, EvaluateBody, FrontBody, PlacementBody, StudyBody
from placement_api.jobs.task import Task
from placement_api.jobs.work import compute
from placement_api.pages.looks import sought
from placement_api.pages.render import render
from placement_api.pages.steps import steps_of
from placement_api.routes.submit import kept
from placement_api.store.tables import RUNNING, JobRow

from placement.support.progress import Progress

CLUSTER = {"num_nodes": 2, "gpus_per_node": 2}
PLAIN: dict[str, Any] = {"cluster": CLUSTER, "options": {"solver": "linear", "bound": "none"}}
SHORT: dict[str, Any] = {"cluster": CLUSTER, "options": {"work_limit": 10, "bound": "none"}}
ASKED: dict[str, tuple[str, type[Body], dict[str, Any]]] = {
    "solve": ("solve", PlacementBody, PLAIN),
    "robust": ("solve", PlacementBody, PLAIN | {"robust": "windows:2"}),
    "group": ("solve", PlacementBody, PLAIN | {"group": {}}),
    "evaluate": ("evaluate", EvaluateBody, {"step_tokens": [4]}),
    "advise": ("advise", AdviseBody, SHORT),
    "front": ("front", FrontBody, SHORT),
    "study": ("study", StudyBody, {"num_nodes": 2}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_trace: Any) -> Path:
    """A data folder with a trace whose halves are parts."""
    data = tmp_path_factory.mktemp("steps")
    write_trace(data / "trace", tokens=1200, requests=24, spread=1.5, num_shards=2)
    return data


def row_of(what: str) -> JobRow:
    kind, body, asked = ASKED[what]
    request = body.model_validate({"traces": ["t"], **asked}).model_dump()
    return JobRow(
        id="j", kind=kind, state=RUNNING, request=kept(request) if "options" in request else request, created=0.0,
        started=time.time(), stage_started=time.time(), stage="", done=0, total=0,
    )  # fmt: skip


def told_by(row: JobRow, data: Path, placement: str | None = None) -> tuple[list[str], dict[str, str]]:
    """The stages that its computation tells of, each once, and its files."""
    told: list[Progress] = []
    task = Task(
        kind=row.kind, request=row.request, traces=[str(data / "trace")], top_k=2, data=str(data), blobs="", workers=1,
        placement=placement,
    )  # fmt: skip
    answer = compute(task, told.append)
    return list(dict.fromkeys(event.stage for event in told)), answer.files


@pytest.mark.parametrize("what", ASKED)
def test_a_job_tells_of_the_steps_on_its_page(what: str, folder: Path) -> None:
    """Each stage has a step, in the order in which they come; and only compiling may come or not."""
    placement = None
    if what == "evaluate":
        digest = told_by(row_of("solve"), folder)[1]["placement"]
        placement = str(folder / "blobs" / digest[:2] / digest)
    row = row_of(what)
    stages, _ = told_by(row, folder, placement)
    steps = [step.stage for step in steps_of(row)]
    assert [stage for stage in steps if stage not in ("queued", "compile")] == [s for s in stages if s != "compile"]
    assert set(stages) <= set(steps)


@pytest.mark.parametrize("what", ASKED)
def test_the_page_shows_which_steps_are_over(what: str) -> None:
    """Those before the one that runs; a step that comes seldom is shown only when it comes."""
    row = row_of(what)
    row.stage, row.done, row.total = steps_of(row)[-1].stage, 1, 4
    text = render(
        "job", job=JobAnswer.of(row), steps=steps_of(row), named=[], live=True, before=None, wanted=sought(row)
    )
    shown = re.findall(r'<li( class="over")? data-stage="(\w+)" data-unit="(\w*)"( aria-current="step")?', text)
    assert [stage for _, stage, _, _ in shown] == [step.stage for step in steps_of(row)]
    assert [bool(over) for over, *_ in shown] == [True] * (len(shown) - 1) + [False]
    assert [stage for _, stage, _, current in shown if current] == [row.stage]
    assert (" hidden>Compiling" in text) == ("compile" in [step.stage for step in steps_of(row)])
