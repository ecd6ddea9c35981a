"""Several captures given together: each weighs as told, whatever its tokens; worst and mean are shown and bounded."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from placement import Cluster, Options, evaluate, open_trace, solution_document, solve
from placement.documents.placement import PlacementFile
from placement.errors import OptionError, TraceError
from placement.pipeline.captures import Capture, Captures
from placement.report.solution.solution_page import report_html
from placement.report.solution.solution_tables import headline
from placement.workload.counted import count_sides
from placement.workload.counts_file import read_counts

BALANCE = Options(objective="balance", work_limit=100_000)
CLUSTER = Cluster(num_nodes=2, gpus_per_node=4, slots_per_gpu=5)
Counts = npt.NDArray[np.int64]


def opposed(num_layers: int = 2, experts: int = 40, seed: int = 0) -> list[Counts]:
    """Totals of two captures whose hot experts differ; the first has 50 times the tokens."""
    rng = np.random.default_rng(seed)
    loads = rng.gamma(40.0, size=(2, num_layers, experts))
    for layer in range(num_layers):
        hot = rng.permutation(experts)
        loads[0, layer, hot[:10]] *= 5
        loads[1, layer, hot[10:20]] *= 5
    return [np.rint(loads[0] * 500).astype(np.int64), np.rint(loads[1] * 10).astype(np.int64)]


def capture_of(folder: Path, name: str, counts: Counts, weight: float = 1.0) -> Capture:
    np.savez(folder / f"{name}.npz", counts=counts, top_k=2, model="m")
    return Capture(name=name, given=read_counts(folder / f"{name}.npz"), weight=weight)


@pytest.fixture
def captures(tmp_path: Path) -> Captures:
    return Captures(
        captures=tuple(capture_of(tmp_path, name, one) for name, one in zip(("a", "b"), opposed(), strict=True))
    )


def imbalance(row: npt.NDArray[np.integer], load_E: npt.NDArray[Any], cluster: Cluster) -> float:
    """Apart from the library: copies serve even shares."""
    load_G = [
        sum(load_E[e] / (row == e).sum() for e in rank) for rank in np.asarray(row).reshape(cluster.num_ranks, -1)
    ]
    return float(max(load_G) / np.mean(load_G))


@pytest.mark.parametrize("slots_per_gpu", [5, 6])
def test_a_long_capture_drowns_no_other(captures: Captures, slots_per_gpu: int) -> None:
    """Both are as even as by a map of their own, nearly; the map of the added tokens leaves the short one uneven."""
    cluster = Cluster(num_nodes=2, gpus_per_node=4, slots_per_gpu=slots_per_gpu)
    solution = solve(captures, cluster, BALANCE, workers=1)
    both = opposed()
    worst = {
        name: max(
            np.mean([imbalance(row, load_E, cluster) for row, load_E in zip(one.phy2log_LP, load_LE, strict=True)])
            for load_LE in both
        )
        for name, one in solution.maps.items()
    }
    assert worst["auto"] < 1.15 < 1.25 < worst["eplb"]
    assert solution.parts is not None and solution.parts.names == ("a", "b")
    for load_LE, answers in zip(both, solution.parts.train, strict=True):
        for name, one in solution.maps.items():
            expected = [imbalance(row, load_E, cluster) for row, load_E in zip(one.phy2log_LP, load_LE, strict=True)]
            np.testing.assert_allclose(answers[name].rank_imbalance_L(), expected)


def test_the_whole_is_the_mixture_by_weight(tmp_path: Path) -> None:
    """Loads of 3 parts of one capture and 1 of the other, at the tokens of both; a heavier capture is served better."""
    heavy = Captures(
        captures=tuple(
            capture_of(tmp_path, name, one, w) for name, one, w in zip("ab", opposed(), (0.03, 0.01), strict=True)
        )
    )
    solution = solve(heavy, CLUSTER, BALANCE, workers=1)
    share_LE = [one / one.sum(axis=1, keepdims=True) for one in opposed()]
    mixed_LE = 0.75 * share_LE[0] + 0.25 * share_LE[1]
    row_LP = solution.placement.phy2log_LP
    expected = [imbalance(row, load_E, CLUSTER) for row, load_E in zip(row_LP, mixed_LE, strict=True)]
    np.testing.assert_allclose(solution.train["auto"].rank_imbalance_L(), expected)
    document = json.loads(json.dumps(solution_document(solution)))
    PlacementFile.model_validate(document)
    assert [(one["name"], one["weight"]) for one in document["evaluation"]["captures"]] == [("a", 0.75), ("b", 0.25)]
    means = [one["train"]["auto"]["rank_imbalance"]["mean"] for one in document["evaluation"]["captures"]]
    assert solution.parts is not None
    assert solution.parts.mean(np.array(means)) == pytest.approx(0.75 * means[0] + 0.25 * means[1])


def test_robust_of_few_experts_is_the_optimum(tmp_path: Path) -> None:
    """Against all maps of all layers: the worst capture is as even as can be, and the bound says so."""
    rng = np.random.default_rng(4)
    counts = rng.integers(1, 100, size=(3, 2, 6))
    given = Captures(captures=tuple(capture_of(tmp_path, f"c{w}", one) for w, one in enumerate(counts)))
    cluster = Cluster(num_nodes=1, gpus_per_node=3, slots_per_gpu=2)
    solution = solve(given, cluster, BALANCE, robust="traces", workers=1)
    figures = solution.parts
    assert figures is not None and figures.bound is not None
    rows = [np.array(row) for row in itertools.permutations(range(6)) if row[0] < row[1] and row[2] < row[3]]
    cost_LRW = [[[imbalance(row, counts[w, layer], cluster) for w in range(3)] for row in rows] for layer in range(2)]
    pairs = np.array(cost_LRW[0])[:, None] + np.array(cost_LRW[1])[None]
    best = float(pairs.max(axis=2).min()) / 2
    assert figures.objective_W["robust"].max() == pytest.approx(best, abs=1e-4)
    assert best - 0.05 < figures.bound <= best + 1e-9
    assert "No map's worst capture costs less than" in headline(solution)


@pytest.mark.parametrize("redundant", [0, 8])
def test_robust_serves_each_about_as_well_as_its_own_map(captures: Captures, redundant: int) -> None:
    """And never worse than the plain map; no bound is above what was found."""
    cluster = Cluster.fit(40, num_nodes=2, gpus_per_node=4, redundant_experts=redundant)
    solution = solve(captures, cluster, BALANCE, robust="traces", workers=1)
    assert solution.parts is not None and solution.parts.bound is not None
    worst = {name: float(cost_W.max()) for name, cost_W in solution.parts.objective_W.items()}
    assert solution.parts.bound <= worst["robust"] <= worst["auto"]
    own = max(
        np.mean([layer.objective for layer in solve(one.given, cluster, BALANCE, workers=1).layers])
        for one in captures.captures
    )
    assert worst["robust"] < own + (0.02 if redundant else 0.06)


def test_the_headline_says_how_uneven_captures_are_and_what_robust_brings(tmp_path: Path) -> None:
    """Only where the worst costs a tenth over the mean: one capture all on two experts that one GPU cannot avoid."""
    first, second = opposed()
    second = np.ones_like(second)
    second[:, :2] = 400
    given = Captures(captures=(capture_of(tmp_path, "even", first), capture_of(tmp_path, "[steep]", second)))
    solution = solve(given, CLUSTER, BALANCE, workers=1)
    said = headline(solution)
    assert "The worst capture, [steep], costs" in said and "over the mean of" in said
    assert "[steep]" in report_html(solution)
    level = Captures(captures=(capture_of(tmp_path, "x", first), capture_of(tmp_path, "y", first)))
    assert "over the mean" not in headline(solve(level, CLUSTER, BALANCE, workers=1))


def test_traces_and_folders_of_counts_are_captures_too(tmp_path: Path, write_trace: Any) -> None:
    """Sends of the whole are the weighted mean of each, on held-out requests of each; the same with any workers."""
    traces = [
        open_trace(write_trace(tmp_path / str(n), tokens=n, requests=20, spread=1.0, seed=n).folder)
        for n in (600, 2400)
    ]
    given = Captures(
        captures=(
            Capture(name="short", given=traces[0], weight=1),
            Capture(name="long", given=count_sides(traces[1], holdout=0.25), weight=3),
        )
    )
    cluster = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=2)
    options = Options(work_limit=1_000)
    solution = solve(given, cluster, options, workers=1)
    assert solution.holdout == 0.25 and solution.parts is not None
    for side, parts in ((solution.train, solution.parts.train), (solution.held_out, solution.parts.held_out)):
        for name, whole in side.items():
            sends = [answers[name].sends_L for answers in parts]
            np.testing.assert_allclose(whole.sends_L, 0.25 * sends[0] + 0.75 * sends[1])
    again = solve(given, cluster, options, workers=3)
    assert json.dumps(solution_document(solution)) == json.dumps(solution_document(again))
    (alone,) = evaluate(traces[0], [solution.placement], cluster=cluster)
    short = [solution.parts.train[0]["auto"], solution.parts.held_out[0]["auto"]]
    total = sum(one.sends_L * one.num_tokens for one in short)
    np.testing.assert_allclose(total, alone.sends_L * alone.num_tokens)
    robust = solve(given, cluster, options, robust="traces", workers=1)
    assert robust.parts is not None and robust.parts.bound is not None
    assert robust.parts.bound <= robust.parts.objective_W["robust"].max() <= robust.parts.objective_W["auto"].max()


def test_what_is_no_set_of_captures_is_refused(captures: Captures, tmp_path: Path) -> None:
    """One, two of one name, of two models, weights that are none; sends of counts; domains of several."""
    one, other = captures.captures
    np.savez(tmp_path / "wide.npz", counts=np.ones((2, 8)), top_k=2)
    wide = Capture(name="w", given=read_counts(tmp_path / "wide.npz"))
    for wrong, said in (((one,), "two or more"), ((one, one), "different names")):
        with pytest.raises(OptionError, match=said):
            Captures(captures=wrong)
    with pytest.raises(TraceError, match="captures of one model"):
        Captures(captures=(one, wide))
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(OptionError, match="must be above 0"):
            Captures(captures=(one, Capture(name="b", given=other.given, weight=weight)))
    with pytest.raises(OptionError, match="use --objective balance"):
        solve(captures, CLUSTER, Options())
    with pytest.raises(OptionError, match="several captures are parts themselves"):
        solve(captures, CLUSTER, BALANCE, robust="domain")


def test_weights_on_the_command_line(tmp_path: Path, run_cli: Any) -> None:
    """PATH=WEIGHT, unless the whole is a path; the table shows weights, worst and mean."""
    for name, counts in zip(("day", "night"), opposed(), strict=True):
        np.savez(tmp_path / f"{name}.npz", counts=counts, top_k=2)
    shape = (
        "--nodes",
        2,
        "--gpus-per-node",
        4,
        "--objective",
        "balance",
        "--work-limit",
        500,
        "-o",
        tmp_path / "p.json",
    )
    shown = run_cli("solve", tmp_path / "day.npz", f"{tmp_path / 'night.npz'}=3", *shape)
    assert shown.code == 0, shown.stderr
    assert "day 25.0%" in shown.stdout and "night 75.0%" in shown.stdout
    assert "worst cost" in shown.stdout and "mean cost" in shown.stdout
    robust = run_cli("robust", tmp_path / "day.npz", tmp_path / "night.npz", *shape)
    assert robust.code == 0 and "robust" in robust.stdout
    for arguments, said in (
        ((f"{tmp_path / 'day.npz'}=3",), "nothing beside it"),
        ((tmp_path / "day.npz", f"{tmp_path / 'night.npz'}=0"), "must be above 0"),
        ((tmp_path / "day.npz", tmp_path / "day.npz"), "given twice"),
        ((tmp_path / "day.npz", f"{tmp_path / 'night.npz'}=x"), "does not exist"),
    ):
        refused = run_cli("solve", *arguments, *shape)
        assert (refused.code, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
        assert said in refused.stderr
