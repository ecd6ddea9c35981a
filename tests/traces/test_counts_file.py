"""Counts without tokens: balance is solved and measured exactly, sends are unknown, bad files are refused in a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placement import Cluster, Model, Options, load_placement, solution_document, solve
from placement.documents.placement import PlacementFile
from placement.errors import OptionError, TraceError
from placement.report.solution.solution_page import report_html
from placement.report.solution.solution_tables import headline
from placement.solvers import SOLVERS
from placement.solvers.layer_problems import layer_problem
from placement.workload.counts_file import read_counts, write_counts

CLUSTER = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=3)
BALANCE = Options(objective="balance", work_limit=1_000)


def some_counts(requests: int = 30, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(1.0, 20.0, (2, 8)), (requests, 2, 8)).astype(np.uint16)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.savez(tmp_path / "c.npz", counts=some_counts(), layer_ids=np.array([3, 7]), top_k=2, model="tiny")
    return tmp_path / "c.npz"


def test_what_a_file_says_is_what_is_read(path: Path, tmp_path: Path) -> None:
    """All keys of a .npz; a .npy has the array alone and takes its name and layers from what is known."""
    counts = read_counts(path)
    assert (counts.model.name, counts.model.layer_ids, counts.model.top_k) == ("tiny", (3, 7), 2)
    np.testing.assert_array_equal(counts.count_QLE, some_counts())
    np.save(tmp_path / "total.npy", some_counts().sum(axis=0))
    total = read_counts(tmp_path / "total.npy", top_k=2)
    assert (total.model.name, total.model.layer_ids) == ("total", (0, 1))
    np.testing.assert_array_equal(total.load_LE(), counts.load_LE())


def test_fractions_are_read_to_high_precision(tmp_path: Path) -> None:
    """Shares of a request's assignments (`frac`) are weights: the loads keep their proportions."""
    shares = some_counts() / np.maximum(some_counts().sum(axis=2, keepdims=True), 1)
    np.savez(tmp_path / "f.npz", frac=shares.astype(np.float32))
    counts = read_counts(tmp_path / "f.npz", top_k=2)
    expected = shares.sum(axis=0)
    np.testing.assert_allclose(counts.load_LE() * counts.unit, expected, rtol=1e-5)


def with_dense_rows(*dense: int) -> Any:
    """Counts of 6 layers of which some are 0 in every request."""
    counts = np.concatenate([some_counts(seed=seed) for seed in range(3)], axis=1)
    counts[:, list(dense)] = 0
    return counts


@pytest.mark.parametrize("dense", [(0,), (0, 1, 2), (5,), (0, 2, 4), (1, 4)])
@pytest.mark.parametrize("by_request", [True, False])
def test_rows_of_dense_layers_are_left_out(
    dense: tuple[int, ...], by_request: bool, tmp_path: Path, run_cli: Callable[..., Any]
) -> None:
    """An engine that counts all hidden layers has rows of 0 for dense ones: other layers keep their numbers, and the
    command says which are left out."""
    counts, path = with_dense_rows(*dense), tmp_path / "c.npz"
    counts = counts if by_request else counts.sum(axis=0)
    live = [layer for layer in range(6) if layer not in dense]
    np.savez(path, counts=counts, top_k=2, num_hidden_layers=6)
    found = read_counts(path)
    assert (found.model.layer_ids, found.left_out, found.model.num_hidden_layers) == (tuple(live), dense, 6)
    np.testing.assert_array_equal(found.count_QLE, counts[..., live, :].reshape(-1, len(live), 8))
    np.savez(path, frac=counts / counts.sum(), top_k=2, layer_ids=np.arange(6) + 10)
    assert read_counts(path).model.layer_ids == tuple(layer + 10 for layer in live)
    np.savez(path, counts=counts, top_k=2)
    ids = ", ".join(map(str, dense)) if len(dense) < 3 or dense[1] == 2 else "0 to 2"
    told = f"{'layer' if len(dense) == 1 else 'layers'} {ids} left out: nothing was counted there"
    result = run_cli("traces", "info", path, "--json")
    assert result.code == 0 and told in result.stderr and told in json.loads(result.stdout)["missing"]
    assert f"{path}: {told}" in run_cli("traces", "info", path).stderr


def test_the_number_of_hidden_layers_reaches_the_engine(tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    """Counts that know the layers of a model whose last ones are dense make a file for SGLang with a row for each."""
    counts, native, file = tmp_path / "c.npz", tmp_path / "p.json", tmp_path / "s.json"
    model = Model(name="m", layer_ids=(1, 3), num_experts=8, top_k=2, num_hidden_layers=6)
    write_counts(counts, model, some_counts().astype(np.int64))
    assert read_counts(counts).model == model
    how = ("--nodes", 2, "--gpus-per-node", 2, "--objective", "balance", "--work-limit", 100)
    assert run_cli("solve", counts, *how, "-o", native).code == 0
    result = run_cli("export", native, "--to", "sglang", "-o", file)
    assert result.code == 0 and "check: layer" not in result.stdout
    assert len(json.loads(file.read_text())["physical_to_logical_map"]) == 6


def test_requests_are_split_and_none_is_lost(path: Path) -> None:
    """Training and held-out counts add up; the split depends on the seed alone."""
    counts = read_counts(path)
    train, held_out = counts.split(0.2, seed=1)
    assert held_out is not None and len(held_out.count_QLE) == 6
    np.testing.assert_array_equal(train.load_LE() + held_out.load_LE(), counts.load_LE())
    assert not set(train.selected.tolist()) & set(held_out.selected.tolist())
    again = counts.split(0.2, seed=1)[1]
    assert again is not None
    np.testing.assert_array_equal(again.selected, held_out.selected)


SPECIAL = ("ilp", "matching", "exhaustive")  # slow, or for some shapes only


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name not in SPECIAL])
@pytest.mark.parametrize("slots_per_gpu", [2, 3])
def test_every_solver_takes_counts(path: Path, solver: str, slots_per_gpu: int) -> None:
    """The imbalance is that of sharing each expert's load evenly over its slots; sends are not a number."""
    cluster = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=slots_per_gpu)
    counts = read_counts(path)
    solution = solve(counts, cluster, Options(objective="balance", solver=solver, work_limit=500), workers=1)
    train, held_out = counts.split(0.2, seed=0)
    assert held_out is not None
    for side, answers in ((train, solution.train), (held_out, solution.held_out)):
        for name, placement in solution.maps.items():
            for layer, row in enumerate(placement.phy2log_LP):
                load_E = side.load_LE()[layer]
                load_G = [
                    sum(load_E[e] / (row == e).sum() for e in row[g * slots_per_gpu : (g + 1) * slots_per_gpu])
                    for g in range(4)
                ]
                expected = max(load_G) / np.mean(load_G)
                assert answers[name].rank_imbalance_L()[layer] == pytest.approx(expected)
            assert np.isnan(answers[name].sends_L).all()
            assert answers[name].summary()["busiest_in"] is answers[name].summary()["busiest_out"] is None
    if solver == "auto":
        for layer in range(2):
            problem = layer_problem(train.workload(0), cluster, solution.options, layer)
            score = {name: problem.score(one.phy2log_LP[layer]).objective for name, one in solution.maps.items()}
            assert score["auto"] <= min(score["linear"], score["eplb"]) + 1e-12
            assert solution.layers[layer].objective == pytest.approx(score["auto"], rel=1e-8)


def test_unknown_is_null_in_the_file_and_said_in_the_reports(path: Path, tmp_path: Path, run_cli: Any) -> None:
    """From the command line: JSON without NaN, a table and a page that say why, a file that loads."""
    out, page = tmp_path / "p.json", tmp_path / "p.html"
    arguments = ("solve", path, "--nodes", 2, "--gpus-per-node", 2, "--objective", "balance", "-o", out)
    result = run_cli(*arguments, "--work-limit", 500, "--report", page)
    assert result.code == 0, result.stderr
    assert "sends are unknown" in " ".join(result.stdout.split())
    assert "nan" not in result.stdout.lower()
    document = json.loads(out.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    summary = document["evaluation"]["held_out"]["auto"]
    assert summary["sends_per_token"] is None and summary["step_time_us"] is None
    assert summary["bytes_per_token"] == {"node": None, "rank": None, "assignment": None}
    assert summary["rank_imbalance"]["mean"] >= 1
    assert load_placement(out)[0].model.layer_ids == (3, 7)
    text = page.read_text()
    assert "unknown" in text and "counts only" in text
    assert ">nan" not in text.lower() and '"nan' not in text.lower()


def test_one_total_has_nothing_to_hold_out(tmp_path: Path) -> None:
    """[L, E]: the figures are those of training, and the file says that none were held out."""
    np.save(tmp_path / "total.npy", some_counts().sum(axis=0))
    solution = solve(read_counts(tmp_path / "total.npy", top_k=2), CLUSTER, BALANCE, workers=1)
    assert solution.held_out == {} and solution.holdout == 0
    document = json.loads(json.dumps(solution_document(solution)))
    assert PlacementFile.model_validate(document).evaluation is not None
    assert "training" in headline(solution)
    assert "sends are unknown" in headline(solution)
    assert report_html(solution) == report_html(solution)


def test_allgather_sends_are_known_whatever_the_tokens(path: Path) -> None:
    """Every token goes everywhere: N - 1 copies."""
    solution = solve(read_counts(path), CLUSTER, Options(transport="allgather", work_limit=500), workers=1)
    np.testing.assert_allclose(solution.train["auto"].sends_L, 1.0)
    assert solution.train["auto"].summary()["step_time_us"] is not None


@pytest.mark.parametrize("options", [Options(), Options(objective="time"), Options(balance_weight=5.0)])
def test_locality_of_counts_is_refused(path: Path, options: Options) -> None:
    """Counts hold no token's set: the error names the objective that they allow."""
    with pytest.raises(OptionError, match="use --objective balance"):
        solve(read_counts(path), CLUSTER, options)


def test_robust_of_counts_is_refused(path: Path) -> None:
    """Which requests belong together is not in the file."""
    with pytest.raises(OptionError, match="needs the trace"):
        solve(read_counts(path), CLUSTER, BALANCE, robust="windows:2")


def negative() -> Any:
    counts = some_counts().astype(np.int32)
    counts[3, 1, 2] = -1
    return counts


def not_a_number() -> Any:
    counts = some_counts().astype(np.float32)
    counts[3, 1, 2] = np.nan
    return counts


def idle_everywhere() -> Any:
    return np.zeros_like(some_counts())


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"counts": some_counts().astype(object)}, "without pickled objects"),
        ({"counts": some_counts()[0, 0]}, r"shape \[8\]"),
        ({"counts": some_counts()[None]}, r"shape \[1, 30, 2, 8\]"),
        ({"counts": some_counts()[:0]}, r"shape \[0, 2, 8\]"),
        ({"counts": negative()}, "values that are -1"),
        ({"counts": not_a_number()}, "not a number"),
        ({"counts": some_counts().astype(complex)}, "complex"),
        ({"counts": some_counts().astype(str)}, "<U"),
        ({"counts": idle_everywhere()}, "nothing was counted in any layer"),
        ({"counts": some_counts().astype(np.float64) * 1e18}, "up to"),
        ({"loads": some_counts()}, "no array 'counts'; it has top_k, loads"),
        ({}, "it has none"),
        ({"counts": some_counts(), "layer_ids": np.arange(3)}, r"layer_ids has shape \[3\]"),
        ({"counts": some_counts(), "layer_ids": np.array([0.0, 1.0])}, "float64"),
        ({"counts": some_counts(), "layer_ids": np.array([1, 0])}, "ascending"),
        ({"counts": some_counts(), "top_k": np.array([2, 2])}, "top_k must be one whole number"),
        ({"counts": some_counts(), "top_k": 9}, "top_k=9"),
    ],
)
def test_bad_counts_are_refused(tmp_path: Path, arrays: dict[str, Any], told: str) -> None:
    """One TraceError that says what and how to mend it; nothing is unpickled."""
    np.savez(tmp_path / "bad.npz", **({"top_k": 2} if "top_k" not in arrays and arrays else {}), **arrays)
    with pytest.raises(TraceError, match=told):
        read_counts(tmp_path / "bad.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"\x93NUMPY\x01\x00", b"no array"])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_broken_files_are_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    """Truncated or foreign files end in a TraceError, whatever numpy makes of them."""
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(TraceError, match="cannot read"):
        read_counts(path, top_k=2)


def test_top_k_must_be_known_and_agree(path: Path, tmp_path: Path, run_cli: Any, write_trace: Any) -> None:
    """From the file or from --top-k, not both and different; it is not for traces."""
    np.save(tmp_path / "total.npy", some_counts().sum(axis=0))
    common = ("--nodes", 2, "--gpus-per-node", 2, "--objective", "balance", "-o", tmp_path / "p.json")
    folder = write_trace(tmp_path / "trace").folder
    for arguments, told in (
        ((tmp_path / "total.npy",), "give --top-k K"),
        ((path, "--top-k", 3), "top_k=3 is not that of"),
        ((folder, "--top-k", 2), "leave it out"),
        ((path, folder), "another model"),
        ((tmp_path / "none.npy", "--top-k", 2), "cannot read"),
    ):
        result = run_cli("solve", *arguments, *common)
        assert result.code == 2 and result.stdout == ""
        assert told in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "p.json").exists()
