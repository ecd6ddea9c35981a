"""The router of chance beside maps in steps, and sizes of steps that are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from plain_steps import QUICK

from placement import Placement, evaluate_steps, open_trace
from placement.cost.steps.given import parse_step_tokens
from placement.cost.steps.uniform import draw_sets
from placement.errors import OptionError


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "an empty place"),
        ("16,,64", "an empty place"),
        ("16,64,", "an empty place"),
        ("16, 64", "' 64'"),
        ("16 64", "'16 64'"),
        ("-4", "'-4'"),
        ("4.5", "'4.5'"),
        ("many", "'many'"),
        ("0,16", "has 0"),
        ("99999999999", "has 99999999999"),
        ("16,64,16", "16 twice"),
    ],
)
def test_sizes_that_are_none_are_refused(text: str, told: str) -> None:
    with pytest.raises(OptionError, match=told):
        parse_step_tokens(text)


def test_a_step_larger_than_the_trace_is_refused(write_trace: Any, tmp_path: Any) -> None:
    """The message says how many are allowed, and that many are."""
    phase_T = np.array([0] * 90 + [1] * 210)
    trace = open_trace(write_trace(tmp_path, tokens=300, requests=20, phase_T=phase_T).folder)
    maps = [
        Placement(
            model=trace.model,
            num_nodes=2,
            gpus_per_node=2,
            slots_per_gpu=2,
            phy2log_LP=np.tile(np.arange(8, dtype=np.int32), (2, 1)),
        )
    ]
    with pytest.raises(
        OptionError, match="90 of prefill and 210 of decode, so no step is full: at most 52 are allowed"
    ):
        evaluate_steps(trace, maps, step_tokens=[4, 53])
    with QUICK:
        ((prefill, decode),) = evaluate_steps(trace, maps, step_tokens=[52])
    assert (prefill.steps, prefill.left_out, prefill.figures) == (0, 90, None)
    assert (decode.steps, decode.left_out) == (1, 2)


@pytest.mark.parametrize(("experts", "top_k"), [(5, 2), (4, 4), (6, 1), (6, 3)])
def test_a_uniform_router_draws_every_set_alike(experts: int, top_k: int) -> None:
    """Chi-square of the sets that were drawn, at 5 standard deviations."""
    ids_TK = np.empty((60_000, top_k), dtype=np.int32)
    draw_sets(np.uint64(3), 0, experts, ids_TK)
    assert ids_TK.min() >= 0 and ids_TK.max() < experts
    ordered = np.sort(ids_TK, axis=1)
    assert (np.diff(ordered, axis=1) > 0).all()
    _, count = np.unique(ordered, axis=0, return_counts=True)
    mean = count.mean()
    freedom = len(count) - 1
    assert len(count) == {(5, 2): 10, (4, 4): 1, (6, 1): 6, (6, 3): 20}[experts, top_k]
    assert ((count - mean) ** 2 / mean).sum() <= freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("size", [2, 16])
def test_the_uniform_router_has_the_imbalance_of_chance(size: int, write_trace: Any, tmp_path: Any) -> None:
    """Against a simulation with numpy, of which this shares nothing: mean and 99th percentile of the busiest GPU."""
    written = write_trace(tmp_path, num_layers=3, num_experts=16, top_k=4, tokens=400, requests=20)
    trace = open_trace(written.folder)
    row = np.tile(np.arange(16, dtype=np.int32), (3, 1))
    maps = [Placement(model=trace.model, num_nodes=2, gpus_per_node=4, slots_per_gpu=2, phy2log_LP=row)]
    ((step,),) = evaluate_steps(trace, maps, step_tokens=[size])
    rng = np.random.default_rng(5)
    sets = rng.random((4000, size * 8, 16)).argsort(axis=2)[:, :, :4] // 2
    load = np.stack([(sets == rank).sum(axis=(1, 2)) for rank in range(8)], axis=1)
    peak = load.max(axis=1) / load.mean(axis=1)
    of_steps = rng.choice(peak, (4000, 3)).mean(axis=1)
    assert step.uniform.busiest_gpu.mean == pytest.approx(peak.mean(), rel=0.01)
    assert step.uniform.busiest_gpu.p99 == pytest.approx(np.quantile(of_steps, 0.99), rel=0.02)
    assert step.uniform.best_split == step.uniform.busiest_gpu  # no expert has copies
    assert step.uniform.step_us.mean == pytest.approx(sum(step.uniform.terms_us))
    assert step.uniform.sends.mean == pytest.approx(1 - _none_of(8, 16, 4), rel=0.01)


def _none_of(away: int, experts: int, top_k: int) -> float:
    """The chance that a set of `top_k` has none of `away` experts."""
    chance = 1.0
    for k in range(top_k):
        chance *= (experts - away - k) / (experts - k)
    return chance
