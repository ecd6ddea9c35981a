"""Solving from counts of a trace: the same answer as from the trace, measured on a sample whose error is honest."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placement import Cluster, Options, Trace, open_trace, solve
from placement.core.placement import Placement
from placement.cost.evaluate_sample import evaluate_sample
from placement.cost.evaluation import evaluate
from placement.errors import OptionError
from placement.support.parallel import make_executor
from placement.traces.split import below_share, request_keys
from placement.workload.counted import count_sides
from placement.workload.counts_folder import count_to_folder, read_counted

CLUSTER = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=3)
TIGHT = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=2)
OPTIONS = Options(work_limit=200, bound="none")


@pytest.fixture
def short_trace(tmp_path: Path, write_trace: Any) -> Trace:
    """Sets that lack a third of their experts."""
    return open_trace(write_trace(tmp_path / "s", tokens=4000, requests=40, top_k=3, spread=1.5, short=0.33).folder)


@pytest.fixture
def trace(tmp_path: Path, write_trace: Any) -> Trace:
    return open_trace(write_trace(tmp_path / "t", tokens=4000, requests=40, num_shards=3, top_k=3, spread=1.5).folder)


def some_maps(trace: Trace, cluster: Cluster) -> list[Placement]:
    rng = np.random.default_rng(0)
    experts = trace.model.num_experts
    expert_P = np.arange(cluster.num_slots) % experts
    return [
        Placement(
            model=trace.model,
            num_nodes=cluster.num_nodes,
            gpus_per_node=cluster.gpus_per_node,
            slots_per_gpu=cluster.slots_per_gpu,
            phy2log_LP=np.stack([rng.permutation(experts)[expert_P] for _ in range(trace.model.num_layers)]),
        )
        for _ in range(4)
    ]


@pytest.mark.parametrize("cluster", [TIGHT, CLUSTER], ids=["single", "copies"])
@pytest.mark.parametrize("choice", ["min-nodes", "uniform", "local-first"])
@pytest.mark.parametrize("of", ["trace", "short_trace"])
def test_a_sample_of_all_tokens_is_exact(
    of: str, cluster: Cluster, choice: str, request: pytest.FixtureRequest
) -> None:
    """Sends and loads are then those of the trace, and the standard error says so."""
    trace = request.getfixturevalue(of)
    maps = some_maps(trace, cluster)
    (side,) = count_sides(trace, holdout=0.0).sides
    exact = evaluate(trace, maps, cluster=cluster, replica_choice=choice)
    for one, other in zip(evaluate_sample(side, maps, cluster=cluster, replica_choice=choice), exact, strict=True):
        np.testing.assert_allclose(one.sends_L, other.sends_L, rtol=1e-12)
        np.testing.assert_allclose(one.links_LNN, other.links_LNN, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(one.load_LP, other.load_LP, rtol=1e-12)
        assert one.assignments_L.tolist() == other.assignments_L.tolist()
        assert (one.num_tokens, one.sampled_tokens, one.sends_error) == (4000, 4000, 0.0)


def test_the_standard_error_is_honest(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over seeds, the sampled sends lie about the exact ones as far as the standard error says; loads stay exact."""
    monkeypatch.setattr("placement.workload.counted.MEASURED_TOKENS", 640)
    maps = some_maps(trace, TIGHT)
    exact = evaluate(trace, maps, cluster=TIGHT)
    apart = []
    for seed in range(40):
        (side,) = count_sides(trace, holdout=0.0, seed=seed).sides
        for one, other in zip(evaluate_sample(side, maps, cluster=TIGHT), exact, strict=True):
            np.testing.assert_allclose(one.load_LP, other.load_LP, rtol=1e-12)
            assert one.sends_error is not None
            apart.append((one.sends_L.mean() - other.sends_L.mean()) / one.sends_error)
    assert abs(np.mean(apart)) < 0.5
    assert 0.75 < np.std(apart) < 1.3


def test_a_folder_of_counts_solves_to_what_its_requests_solve_to(trace: Trace, tmp_path: Path) -> None:
    """The map is that of a solve on the training requests; the figures are those of both sides."""
    count_to_folder(trace, tmp_path / "c", holdout=0.25)
    counted = read_counted(tmp_path / "c")
    drawn = below_share(request_keys([request.id for request in trace.requests], 0), 0.25)
    solution = solve(counted, CLUSTER, OPTIONS)
    alone = solve(trace.select(~drawn), CLUSTER, OPTIONS, holdout=0.0)
    np.testing.assert_array_equal(solution.placement.phy2log_LP, alone.placement.phy2log_LP)
    assert solution.holdout == 0.25
    (held_out,) = evaluate(trace.select(drawn), [solution.placement], cluster=CLUSTER)
    np.testing.assert_allclose(solution.held_out["auto"].sends_L, held_out.sends_L, rtol=1e-12)
    everything = solve(counted, CLUSTER, OPTIONS, holdout=0.0)
    whole = solve(trace, CLUSTER, OPTIONS, holdout=0.0)
    np.testing.assert_array_equal(everything.placement.phy2log_LP, whole.placement.phy2log_LP)
    with pytest.raises(OptionError, match="is not that of the counts"):
        solve(counted, CLUSTER, OPTIONS, holdout=0.3)
    with pytest.raises(OptionError, match="needs the trace"):
        solve(counted, CLUSTER, OPTIONS, robust="domain")


def test_a_large_trace_is_counted_first(trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace above the limit is solved as one below, on the same requests held out, with any workers."""
    monkeypatch.setattr("placement.workload.segment.SEGMENT_TOKENS", 700)
    exact = solve(trace, CLUSTER, OPTIONS)
    assert exact.held_out["auto"].sends_error is None
    monkeypatch.setattr(sys.modules["placement.pipeline.source"], "MOST_EXACT_TOKENS", 3999)
    for workers in (1, 3):
        counted = solve(trace, CLUSTER, OPTIONS, workers=workers)
        assert counted.held_out["auto"].sends_error is not None
        np.testing.assert_array_equal(counted.placement.phy2log_LP, exact.placement.phy2log_LP)
        for side in ("train", "held_out"):
            np.testing.assert_allclose(
                getattr(counted, side)["auto"].load_LP, getattr(exact, side)["auto"].load_LP, rtol=1e-12
            )


def test_the_command_line_counts_merges_and_solves(trace: Trace, tmp_path: Path, run_cli: Any) -> None:
    """Counted in two jobs, merged, solved; what is not known of counts is refused in one line."""
    folder, shape = trace.shards[0].path.parent, ("--nodes", 2, "--gpus-per-node", 2, "--work-limit", 200)
    for part in ("1/2", "2/2"):
        done = run_cli("traces", "count", folder, "-o", tmp_path / part[0], "--part", part, "--json")
        assert done.code == 0, done.stderr
    assert run_cli("traces", "merge", tmp_path / "2", tmp_path / "1", "-o", tmp_path / "all").code == 0
    done = run_cli("traces", "count", folder, "-o", tmp_path / "again")
    assert "counts of 4,000 tokens; " in done.stdout
    assert "4,000 of them counted before" in run_cli("traces", "count", folder, "-o", tmp_path / "again").stdout
    assert run_cli("solve", tmp_path / "all", *shape, "-o", tmp_path / "p.json").code == 0
    assert run_cli("solve", tmp_path / "again", *shape, "-o", tmp_path / "q.json").code == 0
    assert (tmp_path / "p.json").read_bytes() == (tmp_path / "q.json").read_bytes()
    summary = json.loads((tmp_path / "p.json").read_text())["evaluation"]["held_out"]["auto"]
    assert summary["sampled_tokens"] == summary["tokens"]
    for command, *option in (("group",), ("by-class", "--by", "domain"), ("front",), ("robust", "--parts", "domain")):
        refused = run_cli(command, tmp_path / "all", *shape, *option, "-o", tmp_path / "r.json")
        assert (refused.code, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
    both = run_cli("solve", tmp_path / "all", folder, *shape, "-o", tmp_path / "r.json")
    assert both.code == 0, both.stderr
    assert "all 50.0%" in both.stdout and "worst cost" in both.stdout


def test_a_sample_too_small_for_an_error_says_so(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than a figure from groups of one token."""
    monkeypatch.setattr("placement.workload.counted.MEASURED_TOKENS", 100)
    (side,) = count_sides(trace, holdout=0.0).sides
    with make_executor(2) as executor:
        (answer, *_) = evaluate_sample(side, some_maps(trace, TIGHT), cluster=TIGHT, executor=executor)
    assert answer.sends_error is None
    assert answer.summary()["sends_error"] is None
