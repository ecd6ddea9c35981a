"""What a solve says of the requests that its map rests on: the learning curve, and chance in held-out figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from placement import Cluster, Options, Trace, evaluate, open_trace, solution_document, solve
from placement.pipeline.evidence import drawn_imbalance
from placement.pipeline.learning_curve import doubling
from placement.report.solution.summary import headline
from placement.support.parallel import make_executor
from placement.traces.split import held_out
from placement.workload.count import count
from placement.workload.counted import count_sides
from placement.workload.counts_file import read_counts
from placement.workload.of_requests import of_requests
from placement.workload.profiles import profiles
from placement.workload.workload import Workload

CLUSTER = Cluster(num_nodes=4, gpus_per_node=1, slots_per_gpu=8)
COPIES = Cluster(num_nodes=4, gpus_per_node=1, slots_per_gpu=9)
QUICK = Options(work_limit=1000, bound="none")
EXPERTS, TOP_K, LAYERS, TOKENS = 32, 3, 8, 60


def grouped(seed: int, requests: int, *, single: bool) -> npt.NDArray[np.int64]:
    """Top-k sets [L, T, K]: experts are in groups of 4, and a token's set is within one group.

    single: A request has one group, drawn at random, so that few requests do not show all; else each has all groups.
    """
    rng = np.random.default_rng(seed)
    group_LG4 = np.stack([rng.permutation(EXPERTS).reshape(-1, 4) for _ in range(LAYERS)])
    number = EXPERTS // 4
    own_Q = rng.permutation(np.arange(requests) % number)
    group_T = np.repeat(own_Q, TOKENS) if single else np.arange(requests * TOKENS) % number
    order_LT4 = np.argsort(rng.random((LAYERS, len(group_T), 4)), axis=2)
    return np.take_along_axis(group_LG4[:, group_T], order_LT4, axis=2)[:, :, :TOP_K]


@pytest.fixture
def write(tmp_path: Path, write_trace: Any) -> Any:
    def of(ids_LTK: npt.NDArray[np.int64]) -> Trace:
        folder = tmp_path / f"trace{len(list(tmp_path.iterdir()))}"
        return open_trace(
            write_trace(folder, ids_LTK=ids_LTK, requests=ids_LTK.shape[1] // TOKENS, num_experts=EXPERTS).folder
        )

    return of


@pytest.fixture
def mixed(tmp_path: Path, write_trace: Any) -> Trace:
    """24 requests, each with experts that it likes."""
    return open_trace(write_trace(tmp_path / "mixed", tokens=1200, requests=24, num_experts=EXPERTS, spread=1.0).folder)


@pytest.mark.parametrize("cluster", [CLUSTER, COPIES], ids=["single", "copies"])
def test_many_requests_that_are_alike_are_flat_and_few_that_differ_steep(write: Any, cluster: Cluster) -> None:
    """The distribution is known. Requests that show all groups: more change nothing. 16 requests that show one of 8
    groups each: a quarter of them knows half of the groups, a half nearly all. The least is one standard error below
    the mean: by chance below 0 in one trace of six."""
    least = []
    for seed in range(4):
        options = replace(QUICK, work_limit=20_000, seed=seed, balance_weight=0.1, busy_share=0.0)
        alike = doubling(count(write(grouped(seed, 64, single=False)), seed=seed), cluster, options, None)
        apart = doubling(count(write(grouped(seed, 16, single=True)), seed=seed), cluster, options, None)
        assert alike is not None and apart is not None and alike.sends is not None and apart.sends is not None
        assert alike.sends[1] < 0.01 and alike.imbalance[1] < 0.01
        assert apart.sends[1] > 0.1
        least.append(apart.sends[0])
    assert sum(sends > 0 for sends in least) >= 3 and sum(least) / len(least) > 0.01


def test_the_more_requests_differ_the_more_imbalance_falls(tmp_path: Path, write_trace: Any) -> None:
    """By the taste of each request for experts of its own, and by fewer requests."""
    most = []
    for number, (spread, requests) in enumerate([(2.0, 8), (2.0, 64), (0.1, 64)]):
        folder = tmp_path / str(number)
        trace = open_trace(write_trace(folder, tokens=100 * requests, requests=requests, spread=spread).folder)
        found = doubling(count(trace), Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=2), QUICK, None)
        assert found is not None
        most.append(found.imbalance[1])
    assert most == sorted(most, reverse=True) and most[0] > 0.02 and most[-1] < 0.01


def test_the_curve_is_the_same_with_any_number_of_workers(mixed: Trace) -> None:
    workload = count(mixed)
    answers = [doubling(workload, COPIES, QUICK, None)]
    for workers in (1, 3):
        with make_executor(workers) as executor:
            answers.append(doubling(workload, COPIES, QUICK, executor))
    assert answers[0] is not None and answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("requests", [1, 2, 3, 7])
def test_few_requests_have_no_curve_and_the_headline_says_why(write: Any, requests: int) -> None:
    solution = solve(write(grouped(0, requests, single=True)), CLUSTER, QUICK, holdout=0.0, workers=1)
    assert solution.evidence is not None
    assert (solution.evidence.requests, solution.evidence.twice) == (requests, None)
    rests = f"The map rests on {requests} request{'' if requests == 1 else 's'}: too few to tell what more would bring."
    assert rests in headline(solution)


def test_more_requests_than_are_profiled_have_no_curve(mixed: Trace) -> None:
    """The profiles are then a sample, too thin to fit on."""
    workload = count(mixed, profile_requests=20)
    assert len(workload.profile_key_Q) == 20
    assert doubling(workload, CLUSTER, QUICK, None) is None


def test_one_held_out_request_says_little(write: Any) -> None:
    solution = solve(write(grouped(0, 3, single=True)), CLUSTER, QUICK, holdout=0.2, workers=1)
    assert "One held-out request says little about rank imbalance." in headline(solution)


def test_the_file_says_what_the_headline_says(mixed: Trace) -> None:
    solution = solve(mixed, COPIES, QUICK, workers=1)
    evidence = solution_document(solution)["evidence"]
    assert (evidence["requests"], evidence["held_out_requests"], evidence["more_requests"]) == (19, 5, False)
    most = evidence["twice_the_requests"]["rank_imbalance"][1]
    line = headline(solution)
    assert "The map rests on 19 requests; twice as many would" in line
    assert (most > 0.02) == (f"{most:.2f} less rank imbalance" in line)
    assert f"±{2 * evidence['held_out_error']['rank_imbalance']:.2f}" in line


@pytest.mark.parametrize(
    "how",
    [
        {"options": replace(QUICK, time_limit_s=30.0)},
        {"options": replace(QUICK, solver="eplb")},
        {"options": QUICK, "robust": "windows:2"},
    ],
    ids=["time-limit", "eplb", "robust"],
)
def test_no_curve_is_drawn_where_it_is_not_the_answers(mixed: Trace, how: dict[str, Any]) -> None:
    """A deadline is for the map; the curve is that of a new, plain map. The requests are told all the same."""
    solution = solve(mixed, CLUSTER, workers=1, **how)
    assert solution.evidence is not None and solution.evidence.twice is None
    assert "The map rests on " in headline(solution) and "twice as many" not in headline(solution)


def test_a_limit_of_moves_has_no_curve(mixed: Trace) -> None:
    before = solve(mixed, CLUSTER, QUICK, workers=1).placement
    solution = solve(mixed, CLUSTER, replace(QUICK, max_moves=2), current=before, workers=1)
    assert solution.evidence is not None and solution.evidence.twice is None


def test_a_counted_trace_rests_on_the_same(mixed: Trace) -> None:
    plain = solve(mixed, CLUSTER, QUICK, holdout=0.25, workers=1)
    counted = count_sides(mixed, holdout=0.25, held_out_Q=held_out(mixed, 0.25, 0))
    again = solve(counted, CLUSTER, QUICK, workers=1)
    assert plain.evidence is not None and again.evidence is not None
    assert again.evidence.twice == plain.evidence.twice
    assert again.evidence.held_out_requests == plain.evidence.held_out_requests
    assert again.evidence.imbalance_error == pytest.approx(plain.evidence.imbalance_error, rel=0.4)  # other draws


def test_counts_by_request_tell_of_imbalance_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "c.npz", counts=rng.poisson(rng.gamma(0.5, 40, size=(20, 3, EXPERTS))), top_k=TOP_K)
    solution = solve(read_counts(tmp_path / "c.npz"), CLUSTER, replace(QUICK, objective="balance"), workers=1)
    assert solution.evidence is not None and solution.evidence.twice is not None
    assert solution.evidence.twice.sends is None and solution.evidence.twice.imbalance[0] > 0
    line = headline(solution)
    assert "The map rests on 16 requests; twice as many would bring" in line and "fewer sends" not in line
    assert solution_document(solution)["evidence"]["twice_the_requests"]["sends_per_token"] is None


def test_counts_of_one_total_say_that_no_request_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", counts=np.random.default_rng(0).poisson(40, size=(3, EXPERTS)), top_k=TOP_K)
    solution = solve(read_counts(tmp_path / "c.npz"), CLUSTER, replace(QUICK, objective="balance"), workers=1)
    assert "The counts name no requests: how far the map holds for other requests is unknown." in headline(solution)


def test_requests_that_are_alike_leave_nothing_to_chance(write: Any) -> None:
    """The very same request many times over: every draw has the imbalance that was measured."""
    one_LTK = grouped(0, 1, single=False)
    trace = write(np.tile(one_LTK, (1, 10, 1)))
    solution = solve(trace, COPIES, QUICK, holdout=0.0, workers=1)
    answer = solution.train["auto"]
    drawn_B = drawn_imbalance(profile_of(trace), solution.placement, answer, COPIES, 0)
    assert drawn_B == pytest.approx(answer.rank_imbalance_L().mean(), abs=1e-9)


@pytest.mark.parametrize("cluster", [CLUSTER, COPIES], ids=["single", "copies"])
def test_the_error_is_that_of_other_sets_of_requests(tmp_path: Path, write_trace: Any, cluster: Cluster) -> None:
    """Against the truth: the spread of a map's imbalance over 40 sets of 12 requests that it was not fitted to."""
    trace = open_trace(
        write_trace(tmp_path / "t", tokens=12_000, requests=500, num_experts=EXPERTS, top_k=2, spread=1.0).folder
    )
    number_Q = np.arange(500)
    fitted = trace.select(number_Q < 20)
    solution = solve(fitted, cluster, QUICK, holdout=0.0, workers=1)
    errors, values = [], []
    for group in range(40):
        some = trace.select(number_Q // 12 == group + 2)
        (alone,) = evaluate(some, [solution.placement], cluster=cluster)
        values.append(alone.rank_imbalance_L().mean())
        drawn_B = drawn_imbalance(profile_of(some), solution.placement, alone, cluster, 0)
        errors.append(drawn_B.std(ddof=1))
    ratio = np.mean(errors) / np.std(values, ddof=1)
    assert 0.6 < ratio < 1.7  # docs/metrics.md: bootstraps of so few requests are right to about a half


def profile_of(trace: Trace) -> npt.NDArray[np.int64]:
    profile_QLE = profiles(trace, 256, None)
    assert profile_QLE is not None
    return profile_QLE


def test_profiles_are_those_that_counting_finds(mixed: Trace) -> None:
    """The order of the requests aside; and none where there are many."""
    selected = mixed.select(np.arange(24) % 3 == 1)
    counted = count(selected).profile_QLE.astype(np.int64)
    mine = profile_of(selected)
    assert sorted(map(bytes, mine)) == sorted(map(bytes, counted))
    assert profiles(selected, 8, None) is None and profiles(selected, 9, None) is not None


@pytest.mark.parametrize("short", [None, 0.3], ids=["full", "short"])
def test_some_requests_of_a_workload_are_what_counting_them_gives(
    tmp_path: Path, write_trace: Any, short: float | None
) -> None:
    trace = open_trace(write_trace(tmp_path / "t", num_layers=3, tokens=300, requests=9, top_k=3, short=short).folder)
    whole = count(trace, seed=5)
    mine_Q = np.zeros(9, dtype=bool)
    mine_Q[[0, 3, 4]] = True
    keys = {int(count(trace.select(np.arange(9) == q), seed=5).profile_key_Q[0]): q for q in range(9)}
    named = [keys[key] for key in whole.profile_key_Q[mine_Q].tolist()]
    expected = count(trace.select(np.isin(np.arange(9), named)), seed=5)
    for layer in range(3):
        same(of_requests(whole, mine_Q, layer), expected, layer)


def same(one: Workload, expected: Workload, layer: int) -> None:
    assert one.num_tokens == expected.num_tokens
    np.testing.assert_array_equal(one.load_LE[0], expected.load_LE[layer])
    np.testing.assert_array_equal(one.coact_LEE[0], expected.coact_LEE[layer])
    np.testing.assert_array_equal(one.sample_key_S, expected.sample_key_S)
    np.testing.assert_array_equal(one.sample_ids_SLK[:, 0], expected.sample_ids_SLK[:, layer])
    np.testing.assert_array_equal(one.profile_QLE[:, 0], expected.profile_QLE[:, layer])
