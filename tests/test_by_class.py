"""A map for each class of traffic: fitted to the class alone, measured beside the one for all, never sold as more."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement import Cluster, Options, Trace, evaluate, load_placement, open_trace
from placement.errors import LimitError, OptionError
from placement.pipeline.by_class import file_names, solve_by
from placement.pipeline.by_class_solution import ONE, OWN, ByClass
from placement.pipeline.documents.by_class_files import by_class_document, save_classes
from placement.report.classes.classes_report import class_table, terminal_class_table
from placement.report.drawing.numbers import change, number
from placement.report.solution.solution_page import report_html
from placement.solvers.layer_problems import layer_problem
from placement.workload.count import count

CLUSTER = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=2)
QUICK = Options(work_limit=2000, bound="none")
PAIRS = {  # experts that meet in a token: a ring, of which every map of 4 experts a node cuts two pairs or more
    "code": [(0, 1), (2, 3), (4, 5), (6, 7)],
    "chat / <b>": [(1, 2), (3, 4), (5, 6), (7, 0)],
}


def planted(folder: Path, write_trace: Any, *, by_phase: bool = False) -> Trace:
    """Two classes of 24 requests, or prefill and decode of 48, in which experts go together in other ways."""
    rng = np.random.default_rng(3)
    kinds, each = list(PAIRS.values()), 100
    request_T = np.repeat(np.arange(48), each)
    kind_T = (np.arange(len(request_T)) % each < each // 2).astype(int) if by_phase else request_T % 2
    ids_LTK = np.array([[kinds[kind][rng.integers(4)] for kind in kind_T] for _ in range(2)])
    written = write_trace(
        folder, ids_LTK=ids_LTK, request_T=request_T, requests=48, num_experts=8, num_layers=2, top_k=2
    )
    manifest = json.loads((folder / "trace.json").read_text())
    for q, request in enumerate(manifest["requests"]):
        request["domain"] = list(PAIRS)[q % 2]
    (folder / "trace.json").write_text(json.dumps(manifest))
    if by_phase:
        from safetensors.numpy import load_file, save_file

        for shard in written.shards:
            tensors = load_file(shard)
            tensors["phase"] = (1 - kind_T).astype(np.uint8)
            save_file(tensors, shard, metadata={"schema": "expert-trace/1"})
    return open_trace(folder)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory, write_trace: Any) -> Trace:
    return planted(tmp_path_factory.mktemp("planted"), write_trace)


@pytest.fixture(scope="module")
def answer(trace: Trace) -> ByClass:
    return solve_by(trace, CLUSTER, QUICK, by="domain", workers=1)


def test_planted_classes_gain_on_held_out_requests(answer: ByClass) -> None:
    """Each class has a map that keeps all its pairs on one node; no map keeps the pairs of both."""
    assert [one.name for one in answer.classes] == ["chat / <b>", "code"]
    for one in answer.classes:
        assert one.solution.held_out[OWN].sends_L.mean() == pytest.approx(0.5)  # a pair on one of two nodes
    worst = max(one.solution.held_out[ONE].sends_L.max() for one in answer.classes)
    assert worst > 0.65  # in every layer one class has two of its four pairs cut
    figures = answer.figures()
    assert answer.mean(figures.held_out, OWN).sends < answer.mean(figures.held_out, ONE).sends
    assert len(answer.not_better()) < 2  # the one map may keep the pairs of one class in every layer


def test_figures_are_those_of_the_class_alone(trace: Trace, answer: ByClass) -> None:
    """Measured anew on the requests of the class; both sides together are all of its tokens."""
    for one in answer.classes:
        mine = np.array([request.domain == one.name for request in trace.requests])
        sides = one.solution.train, one.solution.held_out
        assert sum(side[OWN].num_tokens for side in sides) == trace.tokens_Q()[mine].sum()
        for name, placement in one.solution.maps.items():
            whole = evaluate(trace.select(mine), [placement], cluster=CLUSTER)[0]
            parts = sum(side[name].sends_L * side[name].num_tokens for side in sides)
            np.testing.assert_allclose(parts, whole.sends_L * whole.num_tokens)
        assert one.solution.maps[ONE] is answer.solution.placement
        assert one.solution.maps["eplb"] is answer.solution.maps["eplb"]


@pytest.mark.parametrize("solver", ["auto", "anneal"])
def test_the_own_map_is_never_worse_on_what_it_was_fitted_to(tmp_path: Path, write_trace: Any, solver: str) -> None:
    """With hardly any moves the search would end above the one map, did it not start from it."""
    folder = write_trace(tmp_path / "t", tokens=2400, requests=48, num_experts=16, top_k=3, spread=2.0).folder
    manifest = json.loads((folder / "trace.json").read_text())
    for q, request in enumerate(manifest["requests"]):
        request["category"] = "ab"[q % 2]
    (folder / "trace.json").write_text(json.dumps(manifest))
    cluster = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=4)
    trace, options = open_trace(folder), Options(solver=solver, work_limit=60, bound="none")
    answer = solve_by(trace, cluster, options, by="category", holdout=0, workers=1)
    for one in answer.classes:
        mine = np.array([request.category == one.name for request in trace.requests])
        workload = count(trace.select(mine))
        for layer in range(2):
            problem = layer_problem(workload, cluster, options, layer)
            own, first = (problem.score(one.solution.maps[name].phy2log_LP[layer]) for name in (OWN, ONE))
            assert own.objective <= first.objective + 1e-12
    assert answer.solution.held_out == {} and class_table(answer).shown == "training"


def test_prefill_and_decode_get_maps_of_their_own(tmp_path: Path, write_trace: Any) -> None:
    """Each phase of all requests is a class, split by request like the whole; the planted gain is found."""
    trace = planted(tmp_path, write_trace, by_phase=True)
    answer = solve_by(trace, CLUSTER, QUICK, by="phase", workers=1)
    assert [one.name for one in answer.classes] == ["prefill", "decode"] and answer.left_out == ()
    for one in answer.classes:
        assert one.solution.held_out[OWN].num_tokens == answer.solution.held_out["auto"].num_tokens / 2
        assert one.solution.held_out[OWN].sends_L.mean() == pytest.approx(0.5)
    assert class_table(answer).noun == "phase"


def test_means_are_weighted_by_tokens(answer: ByClass) -> None:
    figures = answer.figures()
    tokens = np.array([side[OWN].num_tokens for side in figures.train])
    for name in (ONE, OWN, "linear", "eplb"):
        cost = np.array([figures.cost(side[name]) for side in figures.train])
        assert answer.mean(figures.train, name).cost == pytest.approx((cost * tokens).sum() / tokens.sum())
    mixed = answer.solution.train["auto"]
    assert answer.mean(figures.train, ONE).sends == pytest.approx(mixed.sends_L.mean())


def test_a_class_whose_own_map_is_no_better_is_said_so(tmp_path: Path, write_trace: Any) -> None:
    """A solver that looks at nothing gives every class the same map: no gain, and the words say to keep the one."""
    trace = planted(tmp_path, write_trace)
    answer = solve_by(trace, CLUSTER, Options(solver="linear", bound="none"), by="domain", workers=1)
    assert answer.not_better() == [one.name for one in answer.classes]
    table = class_table(answer)
    assert "not better on held-out requests for any domain" in table.said[0]
    assert all(not row.better and row.cost == "0%" for row in table.rows)
    assert by_class_document(answer)["classes"]["own_not_better"] == answer.not_better()


def test_files(tmp_path: Path, answer: ByClass) -> None:
    """Ordinary placement files whose figures are those of the class; the one map's file has all classes."""
    save_classes(tmp_path / "a" / "b", answer)
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["chat_b.json", "code.json"]
    for one in answer.classes:
        placement, file = load_placement(tmp_path / "a" / "b" / one.file)
        np.testing.assert_array_equal(placement.phy2log_LP, one.solution.placement.phy2log_LP)
        assert file.evaluation is not None and file.evaluation.result == OWN
        assert file.provenance is not None and file.provenance.options is not None
        assert file.provenance.options["class"] == one.name


@given(st.lists(st.text(max_size=6), max_size=12))
def test_file_names_are_safe_and_differ(names: list[str]) -> None:
    """Also on file systems that ignore case; a name never leads out of the folder or hides."""
    files = file_names(names)
    assert len({file.lower() for file in files}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\.json", file) for file in files)


def test_workers_change_nothing(trace: Trace, answer: ByClass) -> None:
    """The same bytes with any number of workers."""
    again = solve_by(trace, CLUSTER, QUICK, by="domain", workers=3)
    assert json.dumps(by_class_document(again)) == json.dumps(by_class_document(answer))


def test_the_page_and_the_terminal_show_what_the_file_says(answer: ByClass) -> None:
    """Sends and imbalance of every class on both maps, escaped names, 80 columns."""
    import io

    from html_page import Page
    from rich.console import Console

    document = by_class_document(answer)["classes"]
    shown = io.StringIO()
    Console(file=shown, width=80).print(terminal_class_table(answer))
    terminal, html = shown.getvalue(), report_html(answer.solution, by_class=answer)
    page = " ".join(Page(html).words)
    assert "<b>" not in html.partition('id="classes"')[2].partition("</section>")[0]
    for row in document["classes"]:
        line = next(line for line in terminal.splitlines() if line.startswith(row["name"][:8]))
        one, own = (row["held_out"][name] for name in (ONE, OWN))
        for summary in (one, own):
            assert f"{number(summary['sends_per_token'])} {number(summary['rank_imbalance']['mean'])}" in line
            assert number(summary["sends_per_token"]) in page
        assert change(own["sends_per_token"], one["sends_per_token"]) in line
    assert max(map(len, terminal.splitlines())) <= 80
    assert all(sentence in page for sentence in class_table(answer).said)
    assert number(document["mean"]["held_out"][OWN]["rank_imbalance"]) in page


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"by": "windows:3"}, "domain, category, phase"),
        ({"by": ""}, "unknown"),
        ({"by": "category"}, "by='category': no request of the trace has a category"),
        ({"by": "phase"}, "of prefill there are 0 and 0"),
        ({"by": "domain", "holdout": 1.0}, "holdout=1.0"),
        ({"by": "domain", "options": Options(max_moves=3)}, "max_moves"),
        ({"by": "domain", "options": Options(solver="best")}, "best"),
    ],
)
def test_bad_input_is_one_line(trace: Trace, more: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=re.escape(told)):
        solve_by(trace, CLUSTER, **more)


def test_a_cap_that_a_class_cannot_keep_names_the_class(tmp_path: Path, write_trace: Any) -> None:
    """Both classes together load the linear map evenly, each alone loads half of it; the message says which."""
    request_T = np.repeat(np.arange(8), 100)
    ids_LTK = (4 * (request_T % 2) + np.arange(800) % 4).reshape(1, 800, 1)
    requests = [{"id": f"r{q}", "domain": "ab"[q % 2]} for q in range(8)]
    folder = write_trace(
        tmp_path / "t", ids_LTK=ids_LTK, request_T=request_T, num_experts=8, layer_ids=[0], requests=8
    ).folder
    manifest = json.loads((folder / "trace.json").read_text())
    (folder / "trace.json").write_text(json.dumps(manifest | {"requests": requests}))
    options = Options(solver="linear", max_imbalance=1.5, bound="none")
    with pytest.raises(LimitError, match=re.escape("domain 'a': layer 0: no map with max_imbalance=1.5")):
        solve_by(open_trace(folder), CLUSTER, options, by="domain", holdout=0, workers=1)


def test_the_command(trace: Trace, tmp_path: Path, run_cli: Any) -> None:
    """Files, table and JSON; the JSON is the file of the one map."""
    folder = trace.shards[0].path.parent
    common = [
        "by-class",
        folder,
        "--nodes",
        2,
        "--gpus-per-node",
        2,
        "--work-limit",
        500,
        "--bound",
        "none",
        "--by",
        "domain",
    ]
    out, maps, page = tmp_path / "one.json", tmp_path / "maps", tmp_path / "r.html"
    done = run_cli(*common, "-o", out, "--maps-out", maps, "--report", page)
    assert done.code == 0, done.stderr
    assert "one map for all beside one for each domain" in done.stdout and str(maps) in done.stdout
    assert "solving layers: 6/6" in done.stderr and done.stderr.count("solving layers: 0/6") == 1
    assert "One map for all, or one for each domain" in page.read_text()
    printed = run_cli(*common, "-o", out, "--json")
    assert json.loads(printed.stdout) == json.loads(out.read_text())
    assert load_placement(out)[1].classes is not None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--by", "domain", "--from", "p.json"], "No such option: --from"),
        (["--maps-out", "maps"], "Missing option '--by'"),
        (["--by", "domain", "--maps-out", "maps", "-o", "maps/one.json"], "maps/one.json: No such file or directory"),
        (["--by", "colour"], "domain, category, phase"),
    ],
)
def test_options_that_do_not_go_together(
    trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: Any, options: list[object], told: str
) -> None:
    """One line, exit code 2, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    done = run_cli("by-class", trace.shards[0].path.parent, "--nodes", 2, "--gpus-per-node", 2, *options)
    assert done.code == 2 and told in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_counts_have_no_classes(tmp_path: Path, run_cli: Any) -> None:
    np.save(tmp_path / "c.npy", np.full((2, 8), 100))
    done = run_cli(
        "by-class", tmp_path / "c.npy", "--top-k", 2, "--nodes", 2, "--by", "domain", "-o", tmp_path / "p.json"
    )
    assert done.code == 2 and "by-class needs the trace" in done.stderr
