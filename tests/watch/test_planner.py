"""The planner changes the map where that pays, within its bounds, and otherwise leaves it alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placement import Cluster, Options, Workload, count, open_trace, solve
from placement.analysis.watch import Planner, Window
from placement.analysis.watch.planner import CHANGE, NOT_WORTH_IT, STEADY
from placement.analysis.watch.unseen import fitted_and_unseen
from placement.errors import MapError, OptionError

CLUSTER = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=4)
OPTIONS = Options(objective="time", bound="none", work_limit=3000)


def routed(seed: int, requests: int = 24, tokens: int = 960, taste_seed: int = 0) -> dict[str, Any]:
    """Requests of a domain: they like its experts, which `taste_seed` draws."""
    taste_LE = np.random.default_rng(taste_seed).normal(0.0, 2.0, (2, 16))
    rng = np.random.default_rng(seed)
    request_T = np.arange(tokens) * requests // tokens
    own_LQE = rng.normal(0.0, 0.3, (2, requests, 16))[:, request_T]
    noise_LTE = rng.gumbel(size=(2, tokens, 16))
    ids_LTK = np.argsort(-(taste_LE[:, None] + own_LQE + noise_LTE), axis=2)[:, :, :3]
    return {
        "ids_LTK": ids_LTK,
        "request_T": request_T,
        "num_experts": 16,
        "request_ids": [f"{taste_seed}/{seed}/{q}" for q in range(requests)],
    }


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory, write_trace: Any) -> dict[str, Any]:
    """The map of a domain, more traffic of it, and traffic of another."""
    folder = tmp_path_factory.mktemp("stream")
    for name, seed, taste in (("old", 1, 0), ("same", 2, 0), ("other", 3, 1)):
        write_trace(folder / name, **routed(seed, taste_seed=taste))
    workloads = {name: count(open_trace(folder / name)) for name in ("old", "same", "other")}
    fitted = solve(open_trace(folder / "old"), CLUSTER, OPTIONS, holdout=0).placement
    return {**workloads, "map": fitted}


def planner_of(stream: dict[str, Any], **more: Any) -> Planner:
    known = {"cluster": CLUSTER, "current": stream["map"], "reference": stream["old"], "options": OPTIONS}
    return Planner(**(known | more))


def window_of(*pieces: Workload) -> Window:
    window = Window(size_tokens=2000)
    for piece in pieces:
        window = window.push(piece)
    return window


def test_traffic_of_the_same_kind_changes_nothing(stream: dict[str, Any]) -> None:
    """No drift: no search, and the planner stays as it is."""
    planner = planner_of(stream)
    decision = planner.step(window_of(stream["same"]))
    assert (decision.verdict, decision.placement, decision.gain_ms) == (STEADY, None, None)
    assert planner.after(decision) == planner


def test_other_traffic_changes_the_map_and_that_is_the_new_reference(stream: dict[str, Any]) -> None:
    """The change is fitted to what came since the drift, is better there, and is followed by quiet; the same twice."""
    planner, window = planner_of(stream), window_of(stream["same"], stream["other"])
    decision = planner.step(window)
    assert decision.verdict == CHANGE and decision.placement is not None and decision.plan is not None
    assert decision.window.workload().digest() == stream["other"].digest()
    assert decision.new_us < decision.now_us and decision.gain_ms > decision.cost_ms
    assert planner.step_us(stream["other"], decision.placement) < planner.step_us(stream["other"], stream["map"])
    again = planner.step(window, workers=1)
    assert (again.placement.phy2log_LP == decision.placement.phy2log_LP).all()
    assert again.summary() == decision.summary()
    assert planner.after(decision).step(decision.window).verdict == STEADY


def test_a_gain_below_the_cost_changes_nothing(stream: dict[str, Any]) -> None:
    """The horizon decides: gain and cost are those of the decision that is taken just beyond break-even."""
    window = window_of(stream["other"])
    taken = planner_of(stream).step(window)
    step_gain_ms = (taken.now_us - taken.new_us) / 1e3
    assert taken.cost_ms == pytest.approx(taken.plan.time_ms())
    even = taken.cost_ms / step_gain_ms
    for steps, verdict in ((max(int(even), 1), NOT_WORTH_IT), (int(even) + 1, CHANGE)):
        decision = planner_of(stream, horizon_steps=steps).step(window)
        if steps * step_gain_ms != decision.cost_ms:
            assert decision.verdict == verdict
            assert (decision.placement is None) == (verdict == NOT_WORTH_IT)
    slow = replace(CLUSTER, expert_bytes=10**15)  # copies that take hours
    assert planner_of(stream, cluster=slow, horizon_steps=10).step(window).verdict == NOT_WORTH_IT


def test_moves_are_bounded(stream: dict[str, Any]) -> None:
    """No change copies more weights than allowed."""
    bounded = planner_of(stream, options=replace(OPTIONS, max_moves=5))
    decision = bounded.step(window_of(stream["other"]))
    assert decision.verdict == CHANGE and 0 < decision.plan.num_moves <= 5
    assert planner_of(stream, options=replace(OPTIONS, max_moves=0)).step(window_of(stream["other"])).placement is None


def test_moves_are_bounded_unless_another_bound_is_given(stream: dict[str, Any]) -> None:
    """The last moves of a change gain little: a third of the slots may move, or as many as are allowed."""
    planner = planner_of(stream)
    slots = planner.current.phy2log_LP.size
    decision = planner.step(window_of(stream["other"]))
    assert decision.verdict == CHANGE and 0 < decision.plan.num_moves <= -(-slots // 3)
    free = planner_of(stream, options=replace(OPTIONS, max_moves=slots)).step(window_of(stream["other"]))
    assert free.plan.num_moves > decision.plan.num_moves
    assert free.new_us <= decision.new_us


def test_a_map_of_unknown_origin_is_judged_by_its_gain(stream: dict[str, Any]) -> None:
    """Without a reference there is no drift to test; whatever is decided, the window becomes the reference."""
    planner = planner_of(stream, reference=None)
    decision = planner.step(window_of(stream["other"]))
    assert decision.drift is None and decision.verdict == CHANGE
    assert planner.after(decision).reference.digest() == stream["other"].digest()


def test_maps_are_judged_on_requests_that_neither_was_fitted_to(stream: dict[str, Any]) -> None:
    """Both sides together are the whole, and the unseen one has no request that is known."""
    whole = stream["old"] + stream["same"]
    fitted, unseen = fitted_and_unseen(whole, stream["old"].profile_key_Q)
    assert (fitted.load_LE + unseen.load_LE == whole.load_LE).all()
    assert not np.isin(unseen.profile_key_Q, np.concatenate([fitted.profile_key_Q, stream["old"].profile_key_Q])).any()
    assert len(unseen.profile_key_Q) and np.isin(unseen.sample_owner_S, unseen.profile_key_Q).all()
    assert len(fitted.sample_key_S) + len(unseen.sample_key_S) == len(whole.sample_key_S)
    assert fitted.num_tokens + unseen.num_tokens == whole.num_tokens


def test_short_sets_are_of_as_many_tokens(tmp_path: Path, write_trace: Any) -> None:
    """The tokens of the unseen requests, though these visit fewer experts than `top_k` a token; steps last less."""
    folders = [
        write_trace(tmp_path / name, **routed(3), short=short).folder for name, short in (("a", 0.0), ("b", 0.4))
    ]
    full, short = (count(open_trace(folder)) for folder in folders)
    tokens = [fitted_and_unseen(one, None)[1].num_tokens for one in (full, short)]
    assert tokens[1] == pytest.approx(tokens[0], rel=0.05)
    planner = Planner(current=solve(open_trace(folders[0]), CLUSTER, OPTIONS, holdout=0).placement, cluster=CLUSTER)
    assert planner.step_us(short, planner.current) < 0.8 * planner.step_us(full, planner.current)


def test_bad_input(stream: dict[str, Any], tmp_path: Path, write_trace: Any) -> None:
    """Traffic of another model, and options that mean nothing."""
    write_trace(tmp_path / "t", num_experts=8)
    with pytest.raises(MapError):
        planner_of(stream).step(window_of(count(open_trace(tmp_path / "t"))))
    with pytest.raises(MapError):
        planner_of(stream, reference=count(open_trace(tmp_path / "t")))
    for wrong in ({"horizon_steps": 0}, {"level": 1e-6}, {"min_effect": 0.0}):
        with pytest.raises(OptionError):
            planner_of(stream, **wrong)
