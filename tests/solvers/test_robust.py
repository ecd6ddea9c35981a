"""The robust map: its worst part is never worse than the plain map's, and what it minimizes is what is reported."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement import Cluster, Options, Trace, count, open_trace, solution_document, solve
from placement.documents.placement import PlacementFile
from placement.pipeline.part_programs import choose, least_worst, relaxed, worst
from placement.solvers.layer_problems import layer_problem
from placement.solvers.mixtures import SCALE, Mixtures
from placement.traces.parts import parts_of

CLUSTER = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=2)
QUICK = Options(work_limit=2_000)


def opposed(write_trace: Any, folder: Path, *, share: float = 0.85) -> Trace:
    """Two domains that want other experts together: (0 1), (2 3), ... and (0 4), (1 5); the first far more frequent."""
    rng = np.random.default_rng(3)
    tokens, requests = 4_000, 40
    rare_Q = np.arange(requests) >= share * requests
    request_T = np.arange(tokens) * requests // tokens
    base_T = rng.integers(0, 2, tokens) * 4
    pair_T = rng.integers(0, 2, tokens)
    common = np.stack([base_T + 2 * pair_T, base_T + 2 * pair_T + 1], axis=1)
    rare = np.stack([pair_T, 4 + pair_T], axis=1)
    ids_TK = np.where(rare_Q[request_T][:, None], rare, common)
    write_trace(folder, ids_LTK=np.stack([ids_TK] * 3), request_T=request_T, num_experts=8, requests=requests)
    manifest = json.loads((folder / "trace.json").read_text())
    for request, rare_one in zip(manifest["requests"], rare_Q, strict=True):
        request["domain"] = "rare" if rare_one else "common"
    (folder / "trace.json").write_text(json.dumps(manifest))
    return open_trace(folder)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory, write_trace: Any) -> Trace:
    return opposed(write_trace, tmp_path_factory.mktemp("opposed"))


@pytest.mark.parametrize("slots_per_gpu", [2, 3])
@pytest.mark.parametrize("objective", ["locality", "balance"])
def test_the_worst_part_gets_better(trace: Trace, slots_per_gpu: int, objective: str) -> None:
    """Never worse than plain on training data, and what is said to be minimized equals the problems' own scores."""
    cluster = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=slots_per_gpu)
    options = Options(work_limit=2_000, objective=objective)
    solution = solve(trace, cluster, options, holdout=0, robust="domain", workers=1)
    assert solution.parts is not None and solution.result_name == "robust"
    objective_W = solution.parts.objective_W
    assert objective_W["robust"].max() <= objective_W["auto"].max()
    assert objective_W["robust"].max() <= min(objective_W[name].max() for name in ("linear", "eplb"))
    if objective == "locality" and slots_per_gpu == 2:  # with 3 the nodes hold nearly all experts
        assert objective_W["robust"].max() < objective_W["auto"].max() - 0.05
    parts = parts_of(trace, "domain")
    for w in range(2):
        workload = count(parts.of(trace, w), sample_tokens=16_384)
        scores = [
            layer_problem(workload, cluster, options, layer).score(solution.placement.phy2log_LP[layer]).objective
            for layer in range(3)
        ]
        assert np.mean(scores) == pytest.approx(objective_W["robust"][w], abs=1e-9)


def test_plain_map_and_robust_map_are_both_measured(trace: Trace) -> None:
    """Per part, on requests of that part alone; the file says it and is valid."""
    solution = solve(trace, CLUSTER, QUICK, robust="domain", workers=1)
    assert list(solution.maps) == ["linear", "eplb", "auto", "robust"]
    figures = solution.parts
    assert figures is not None and figures.names == ("common", "rare")
    for side, whole in ((figures.train, solution.train), (figures.held_out, solution.held_out)):
        assert sum(answers["robust"].num_tokens for answers in side) == whole["robust"].num_tokens
        for name in solution.maps:
            np.testing.assert_allclose(sum(a[name].load_LP for a in side), whole[name].load_LP)
    document = json.loads(json.dumps(solution_document(solution)))
    file = PlacementFile.model_validate(document)
    assert file.robust is not None and file.robust.by == "domain"
    assert document["robust"]["parts"][1]["held_out"]["robust"]["tokens"] == 100
    assert document["robust"]["objective"]["robust"]["worst"] == max(
        part["objective"]["robust"] for part in document["robust"]["parts"]
    )
    assert document["evaluation"]["result"] == "robust"
    assert document["physical_to_logical"] == solution.maps["robust"].phy2log_LP.tolist()


def test_the_same_bytes_with_any_number_of_workers(trace: Trace) -> None:
    """Same input, seed and work limit: the same document."""
    one, two = (solution_document(solve(trace, CLUSTER, QUICK, robust="windows:3", workers=n)) for n in (1, 3))
    assert json.dumps(one) == json.dumps(two)


def test_caps_hold_for_the_robust_map(trace: Trace) -> None:
    """On all training requests, as in `placement solve`."""
    solution = solve(
        trace, CLUSTER, Options(work_limit=2_000, max_imbalance=1.1), holdout=0, robust="domain", workers=1
    )
    assert solution.train["robust"].rank_imbalance_L().max() <= 1.1 + 1e-9


def test_a_time_limit_is_kept_roughly(trace: Trace) -> None:
    """Layers that it cut short say so; the answer is still no worse than the plain one."""
    solution = solve(trace, CLUSTER, Options(time_limit_s=0.2), holdout=0, robust="domain", workers=1)
    assert solution.parts is not None
    assert solution.parts.objective_W["robust"].max() <= solution.parts.objective_W["auto"].max()


def test_a_mixture_costs_the_weighted_mean_of_its_parts(trace: Trace) -> None:
    """Sends are linear in the weights (to the rounding of counts); loads are rows of the parts in proportion."""
    parts = parts_of(trace, "domain")
    whole = layer_problem(count(trace), CLUSTER, QUICK, 0)
    problems = [layer_problem(count(parts.of(trace, w)), CLUSTER, QUICK, 0) for w in range(2)]
    weight_W = np.array([0.25, 0.75])
    mixture = Mixtures(whole, problems).problem(weight_W, seed=1)
    assert abs(int(mixture.count_U.sum()) - SCALE) <= len(mixture.count_U)
    assert len(mixture.load_BE) == 1 + len(whole.load_BE)
    np.testing.assert_array_equal(mixture.load_BE[0], whole.load_E)
    rng = np.random.default_rng(0)
    for _ in range(10):
        row = rng.permutation(8).astype(np.int32)
        expected = weight_W @ [problem.score(row).sends for problem in problems]
        assert mixture.score(row).sends == pytest.approx(expected, abs=1e-5)
        rows = mixture.load_BE[1:]
        quarter = len(whole.load_BE) // 4
        np.testing.assert_array_equal(rows[:quarter], problems[0].load_BE[:quarter])


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_the_choice_is_the_best_of_all(seed: int) -> None:
    """Against all choices of one map a layer; the linear program is a lower bound, and its weights prove it."""
    rng = np.random.default_rng(seed)
    cost_LCW = [rng.random((int(rng.integers(1, 5)), 3)) for _ in range(int(rng.integers(1, 5)))]
    best = min(worst(cost_LCW, choice) for choice in itertools.product(*(range(len(c)) for c in cost_LCW)))
    assert worst(cost_LCW, choose(cost_LCW)) == pytest.approx(best, abs=2e-5 * len(cost_LCW))
    weight_W, share_LC = relaxed(cost_LCW)
    assert weight_W.sum() == pytest.approx(1) and (weight_W >= 0).all()
    proven = sum(float((cost_CW @ weight_W).min()) for cost_CW in cost_LCW)
    assert proven <= best + 1e-9
    reached = sum(share_C @ cost_CW for share_C, cost_CW in zip(share_LC, cost_LCW, strict=True)).max()  # type: ignore[union-attr]
    assert reached == pytest.approx(proven, abs=1e-7)
    assert least_worst(cost_LCW) * len(cost_LCW) == pytest.approx(proven, abs=1e-7)
