"""Placement and grouping together: on requests of planted kinds, on the command line, and in odd shapes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placement import Cluster, Options, Placement, evaluate, load_placement, open_trace
from placement.grouping.align import align_nodes
from placement.grouping.grouping_file import load_grouping, load_router
from placement.grouping.home_costs import home_costs
from placement.grouping.requests import requests_of
from placement.pipeline.documents.grouping_document import grouping_file
from placement.pipeline.with_homes import solve_grouped

WriteTrace = RunCli = Callable[..., Any]
KINDS, EACH, TOKENS = 4, 10, 30
QUICK = Options(work_limit=4000, bound="none")


def name_requests(written: Any, requests: list[dict[str, str]]) -> Path:
    (written.folder / "trace.json").write_text(json.dumps(written.manifest | {"requests": requests}))
    return Path(written.folder)


def write_kinds(folder: Path, write_trace: WriteTrace, seed: int = 0) -> Path:
    """Requests of four kinds; three of a token's four experts are of the eight that its kind likes."""
    rng = np.random.default_rng(seed)
    request_T = np.repeat(np.arange(KINDS * EACH), TOKENS)
    kind_T = request_T % KINDS
    liked_LKE = np.stack([rng.permutation(32).reshape(KINDS, 8) for _ in range(3)])
    ids = np.zeros((3, len(request_T), 4), dtype=np.int64)
    for layer in range(3):
        for t, kind in enumerate(kind_T):
            near = rng.choice(liked_LKE[layer, kind], 3, replace=False)
            far = rng.choice(np.setdiff1d(np.arange(32), near))
            ids[layer, t] = [*near, far]
    written = write_trace(folder, ids_LTK=ids, num_experts=32, request_T=request_T, requests=KINDS * EACH)
    return name_requests(written, [{"id": f"r{q}", "domain": f"kind {q % KINDS}"} for q in range(KINDS * EACH)])


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, write_trace: WriteTrace) -> Path:
    return write_kinds(tmp_path_factory.mktemp("kinds"), write_trace)


CLUSTER = Cluster(num_nodes=4, gpus_per_node=2, slots_per_gpu=4)


def test_planted_kinds_are_found(kinds: Path) -> None:
    """Every kind gets a node of its own, on training and on held-out requests, grouped or routed; most sends go."""
    grouped = solve_grouped(open_trace(kinds), CLUSTER, QUICK, holdout=0.3, tolerance=0.7)
    home_Q, kind_Q = grouped.home_Q, np.arange(KINDS * EACH) % KINDS
    node_of = [np.bincount(home_Q[kind_Q == kind]).argmax() for kind in range(KINDS)]
    assert sorted(node_of) == [0, 1, 2, 3]
    assert (home_Q == np.array(node_of)[kind_Q]).mean() > 0.9
    both, alone = grouped.gains[-1], grouped.gain("auto")
    assert both.held_out is not None and alone.held_out is not None and both.routed is not None
    assert both.held_out.sends_L.mean() < 0.65 * alone.held_out.sends_L.mean()
    assert both.routed.sends_L.mean() < 0.85 * alone.held_out.sends_L.mean()
    assert grouped.homes.assignment.gap <= 1e-3


def test_figures_are_those_of_the_evaluation(kinds: Path) -> None:
    """What the assignment says the homes cost is what the exact evaluation measures with them."""
    trace = open_trace(kinds)
    grouped = solve_grouped(trace, CLUSTER, QUICK, holdout=0)
    answer = evaluate(trace, [grouped.solution.placement], home_Q=grouped.home_Q)[0]
    tokens = int(grouped.tokens_Q.sum())
    assert grouped.homes.assignment.cost == pytest.approx(answer.node_sends_L.sum() * tokens)
    assert grouped.gains[-1].train.node_sends_L == pytest.approx(answer.node_sends_L)


@pytest.mark.parametrize("redundant", [0, 8])
def test_same_bytes_with_any_number_of_workers(kinds: Path, redundant: int) -> None:
    """The placement and the whole grouping file, with and without redundant experts."""
    cluster = Cluster.fit(32, num_nodes=4, gpus_per_node=2, redundant_experts=redundant)
    documents = [
        grouping_file(solve_grouped(open_trace(kinds), cluster, QUICK, workers=workers)).content() for workers in (1, 3)
    ]
    assert documents[0] == documents[1]


def test_labels_are_aligned(kinds: Path) -> None:
    """Permuting the nodes of each layer leaves sends at random homes alone and lowers those at common homes."""
    trace = open_trace(kinds)
    rng = np.random.default_rng(3)
    start = solve_grouped(trace, CLUSTER, QUICK, holdout=0).gain("auto").placement
    rows = start.phy2log_LP.reshape(3, 4, 8)
    mixed = np.stack([rows[layer][rng.permutation(4)] for layer in range(3)]).reshape(3, 32)
    placement = Placement(model=trace.model, num_nodes=4, gpus_per_node=2, slots_per_gpu=4, phy2log_LP=mixed)
    requests = requests_of(trace)
    costs = home_costs(trace, requests, placement, CLUSTER)
    aligned, cost_LQN = align_nodes(placement, costs.cost_LQN, costs.tokens_Q, CLUSTER, 0.02)
    again = home_costs(trace, requests, aligned, CLUSTER)
    assert cost_LQN == pytest.approx(again.cost_LQN)
    assert cost_LQN.sum() == pytest.approx(costs.cost_LQN.sum())
    assert cost_LQN.sum(axis=0).min(axis=1).sum() < 0.95 * costs.cost_QN.min(axis=1).sum()


def test_unequal_nodes_keep_their_labels() -> None:
    """Nodes whose GPUs differ in speed do not trade places: a map is balanced for the GPUs that it was made for."""
    speeds = tuple(np.repeat([1.0, 2.0, 3.0, 4.0], 2).tolist())
    cluster = Cluster(num_nodes=4, gpus_per_node=2, slots_per_gpu=4, gpu_speeds=speeds)
    cost_LQN = np.random.default_rng(0).random((2, 9, 4))
    marker = object()
    assert align_nodes(marker, cost_LQN, np.ones(9, dtype=np.int64), cluster, 0.02)[0] is marker  # type: ignore[arg-type]


def test_odd_requests(tmp_path: Path, write_trace: WriteTrace) -> None:
    """Unknown domains, requests without tokens, one that is longer than a node's share, and fewer than nodes."""
    request_T = np.repeat([0, 2], [50, 4])
    requests = [{"id": "long"}, {"id": "empty", "domain": "x"}, {"id": "short", "domain": "x"}]
    folder = name_requests(write_trace(tmp_path / "t", tokens=54, request_T=request_T, requests=3), requests)
    cluster = Cluster(num_nodes=4, gpus_per_node=1, slots_per_gpu=2)
    grouped = solve_grouped(open_trace(folder), cluster, QUICK, holdout=0)
    document = grouping_file(grouped).document()
    assert document["without_tokens"] == ["empty"]
    assert set(document["homes"]) == {"long", "short"}
    assert document["balance"]["kept"] is False
    assert {row["domain"] for row in document["domains"]} == {"unknown", "x"}


def test_the_file_comes_back(tmp_path: Path, kinds: Path, run_cli: RunCli) -> None:
    """`group` without a map writes a placement and a grouping; router, homes and evaluation of the files agree."""
    out, groups = tmp_path / "p.json", tmp_path / "g.json"
    done = run_cli(
        "group", kinds, "--nodes", 4, "--gpus-per-node", 2, "-o", groups, "--placement-out", out,
        "--work-limit", 3000, "--holdout", 0, "--bound", "none", "--json",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    file = load_grouping(groups)
    trace = open_trace(kinds)
    placement, _ = load_placement(out)
    answer = evaluate(trace, [placement], home_Q=file.home_Q(trace))[0]
    assert file.gains[-1].train.node_sends_per_token == pytest.approx(float(answer.node_sends_L.mean()), abs=1e-6)
    router = load_router(groups)
    asked = np.zeros((3, 32), dtype=int)
    assert 0 <= router.assign(asked, [3, 0, 1, 2]).node == 1
    measured = run_cli("evaluate", kinds, "--map", out, "--grouping", groups, "--json")
    shown = json.loads(measured.stdout)
    assert shown["requests_without_home"] == 0
    assert shown["maps"][0]["summary"]["node_sends_per_token"] == pytest.approx(
        file.gains[-1].train.node_sends_per_token, abs=1e-6
    )


def test_grouping_for_a_map_that_exists(tmp_path: Path, kinds: Path, run_cli: RunCli) -> None:
    """`placement group` leaves the map as it is and sends less with homes than without."""
    out, groups = tmp_path / "p.json", tmp_path / "g.json"
    assert run_cli("solve", kinds, "--nodes", 4, "--gpus-per-node", 2, "-o", out, "--work-limit", 3000).code == 0
    done = run_cli("group", kinds, "--map", out, "-o", groups)
    assert done.code == 0, done.stderr
    gains = {gain.name: gain for gain in load_grouping(groups).gains}
    assert gains["map + homes"].train.node_sends_per_token < gains["map"].train.node_sends_per_token


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--nodes", 1), "one node is all there is"),
        (("--nodes", 4, "--transport", "allgather"), "do not count here"),
        (("--nodes", 4, "--objective", "balance"), "do not count here"),
        (("--nodes", 4, "--home-from", "2"), "homes from '2' is unknown"),
        (("--nodes", 4, "--home-from", "prefill"), "no tokens"),
        (("--nodes", 4, "--token-tolerance", "-1"), "tolerance=-1"),
        (("--nodes", 4, "--workers", "ray"), "requests are grouped by threads"),
        (("--map", "none.json"), "--work-limit would find a map"),
    ],
)
def test_bad_options(tmp_path: Path, kinds: Path, run_cli: RunCli, arguments: tuple[object, ...], said: str) -> None:
    """One line, exit code 2, and no file is left."""
    out = tmp_path / "p.json"
    done = run_cli("group", kinds, "-o", out, "--work-limit", 500, *arguments)
    assert (done.code, out.exists()) == (2, False)
    assert said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": "expert-placement/1"}', '{"schema": "expert-grouping/1"}'])
def test_bad_grouping_files(tmp_path: Path, kinds: Path, run_cli: RunCli, text: str) -> None:
    """Refused in one line that names the file."""
    bad = tmp_path / "g.json"
    bad.write_text(text)
    out = tmp_path / "p.json"
    assert run_cli("solve", kinds, "--nodes", 4, "-o", out, "--work-limit", 500, "--solver", "linear").code == 0
    done = run_cli("evaluate", kinds, "--map", out, "--grouping", bad)
    assert done.code == 2 and str(bad) in done.stderr and "Traceback" not in done.stderr
