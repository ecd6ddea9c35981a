"""Steps in advice: the figures are those of the replay, and where chance alone makes steps uneven it is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from placement import Cluster, Options, evaluate_steps, open_trace, solve
from placement.analysis.advise import advise
from placement.cost.step_time import Term
from placement.report.advice.advice_text import answers
from placement.report.drawing.numbers import percent
from placement.traces.split import split_requests

CLUSTER = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=4)
QUICK = Options(work_limit=200, seed=3)


def test_figures_are_those_of_the_replay(tmp_path: Path, write_trace: Any) -> None:
    """Of the maps that `solve` finds, on the held-out requests, for the sizes of which two steps are full."""
    trace = open_trace(write_trace(tmp_path, num_experts=16, tokens=900, requests=60, spread=2.0).folder)
    advice = advise(trace, CLUSTER, QUICK)
    solution = solve(trace, CLUSTER, Options(work_limit=200, seed=3, objective="time", bound="none"))
    _, held_out = split_requests(trace, advice.holdout, 3)
    maps = list(solution.maps.values())
    costs = evaluate_steps(held_out, maps, step_tokens=(1, 4, 16), cluster=CLUSTER, seed=3)
    assert advice.steps is not None
    sizes = advice.steps.sizes
    assert [(one.phase, one.tokens_per_gpu) for one in sizes] == [("decode", 1), ("decode", 4), ("decode", 16)]
    for number, one in enumerate(sizes):
        assert list(one.maps) == ["linear", "eplb", "solved"]
        assert list(one.maps.values()) == [rows[number].figures for rows in costs]
        assert one.uniform == costs[0][number].uniform
        assert one.gain == 1 - costs[2][number].figures.step_us.mean / costs[0][number].figures.step_us.mean
        assert not one.is_floor
    assert advice.document()["steps"][0]["tokens_per_gpu"] == 1
    assert "With 1 token a GPU the busiest GPU has" in answers(advice)["steps"][1]
    solved = costs[2][0].figures
    share = solved.terms_us[Term.MEMORY] / solved.step_us.mean
    assert f"the largest part of a step of 1 token a GPU is memory ({percent(share)})" in answers(advice)["steps"][2]


def test_a_router_that_is_uniform_leaves_nothing_to_balance(tmp_path: Path, write_trace: Any) -> None:
    """Below so many tokens no map helps, and the sentence says why."""
    ids = np.random.default_rng(0).random((2, 20_000, 16)).argsort(axis=2)[:, :, :2]
    written = write_trace(tmp_path, ids_LTK=ids, num_experts=16, request_T=np.arange(20_000) // 50, requests=400)
    advice = advise(open_trace(written.folder), CLUSTER, QUICK)
    assert advice.steps is not None
    rooms = [(one.tokens_per_gpu, one.room) for one in advice.steps.sizes]
    assert all(one.is_floor for one in advice.steps.sizes), rooms
    told = answers(advice)["steps"][1]
    assert told.startswith("With 256 tokens a GPU or fewer no map makes such steps more even, because")


def test_too_few_tokens_fill_no_step(tmp_path: Path, write_trace: Any) -> None:
    """It is said why there are none."""
    trace = open_trace(write_trace(tmp_path, num_experts=16, tokens=30, requests=30).folder)
    advice = advise(trace, CLUSTER, QUICK)
    assert advice.steps is None
    assert "fill no step of 4 GPUs" in advice.absent["steps"]
