"""Prompts from a trace to a grouping file: learned, measured on held-out requests, printed, and used by the router."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placement import Cluster, Options, open_trace
from placement.grouping.grouping_file import load_grouping, load_router
from placement.pipeline.documents.grouping_document import grouping_file
from placement.pipeline.grouped_solution import GroupedSolution
from placement.pipeline.with_homes import solve_grouped
from placement.traces.prompts import TokenLists, prompts_of, write_prompts

KINDS, EACH, TOKENS = 4, 10, 24
CLUSTER = Cluster(num_nodes=4, gpus_per_node=1, slots_per_gpu=4)


def planted(path: Path, write_trace: Callable[..., Any], *, prompted: bool, labelled: bool) -> Path:
    """Requests of four kinds: a kind has experts of its own, and words of its own in its prompts, or a domain."""
    rng = np.random.default_rng(0)
    kind_Q = np.arange(KINDS * EACH) % KINDS
    request_T = np.repeat(np.arange(len(kind_Q)), TOKENS)
    liked_LKE = np.stack([rng.permutation(16).reshape(KINDS, 4) for _ in range(2)])
    ids = np.stack([[rng.choice(liked_LKE[layer, kind_Q[q]], 2, replace=False) for q in request_T] for layer in (0, 1)])
    written = write_trace(path, ids_LTK=ids, num_experts=16, request_T=request_T, requests=len(kind_Q))
    prompts = [np.concatenate([rng.integers(0, 9, 8), 50 * (kind + 1) + rng.integers(0, 9, 6)]) for kind in kind_Q]
    if prompted:
        write_prompts(written.folder, TokenLists.of(np.concatenate(prompts).astype(np.int32), np.full(len(kind_Q), 14)))
    if labelled:
        requests = [{"id": f"r{q}", "domain": f"kind {kind}"} for q, kind in enumerate(kind_Q.tolist())]
        (path / "trace.json").write_text(json.dumps(written.manifest | {"requests": requests}))
    return Path(written.folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_trace: Callable[..., Any]) -> Path:
    return planted(tmp_path_factory.mktemp("trace"), write_trace, prompted=True, labelled=False)


@pytest.fixture(scope="module")
def grouped(folder: Path) -> GroupedSolution:
    options = Options(work_limit=3000, bound="none", balance_weight=0.05)
    return solve_grouped(open_trace(folder), CLUSTER, options, holdout=0.3, home_from="0.25", tolerance=0.5)


def test_prompts_are_worth_nearly_what_a_quarter_of_the_answer_is(grouped: GroupedSolution) -> None:
    """Planted kinds are told from their words: most of what the first quarter gives, grouped and routed."""
    sources = {one.name: one for one in grouped.homes.sources}
    gain = sources["nothing"].grouped_sends - sources["first part"].grouped_sends
    assert gain > 0.1
    assert sources["nothing"].grouped_sends - sources["prompt"].grouped_sends > 0.9 * gain
    assert sources["nothing"].routed_sends - sources["prompt"].routed_sends > 0.5 * gain


def test_the_file_routes_by_prompts_as_the_solution_does(
    folder: Path, grouped: GroupedSolution, tmp_path: Path
) -> None:
    path = tmp_path / "grouping.json"
    grouping_file(grouped).write(path)
    router, mine = load_router(path), grouped.homes.router
    prompts = prompts_of(open_trace(folder))
    for q in np.flatnonzero(grouped.held_out_Q).tolist():
        one, two = (each.assign(prompt=prompts.list_of(q), load=[9, 4, 2, 1]) for each in (router, mine))
        assert (one.node, one.why) == (two.node, "prompt")
    assert [one.name for one in load_grouping(path).sources] == [one.name for one in grouped.homes.sources]


def test_version_1_is_still_read(grouped: GroupedSolution, tmp_path: Path) -> None:
    """Neither prices nor a predictor: homes from counts, load within the band; and the file is what it was."""
    path = tmp_path / "grouping.json"
    document = json.loads(grouping_file(grouped).content())
    document["schema"] = "expert-grouping/1"
    del document["sources"]
    for key in ("prices", "predictor", "counts_scale", "prefix_sends"):
        del document["router"][key]
    path.write_text(json.dumps(document))
    router = load_router(path)
    assert (router.prices, router.predictor) == (None, None)
    counts = np.ones((2, 16))
    home = router.assign(counts, [0, 9e9, 9e9, 9e9], prompt=[1, 2])
    assert (home.node, home.why) == (0, "counts")
    path.write_text(json.dumps(document | {"schema": "expert-grouping/0"}))
    with pytest.raises(Exception, match="expert-grouping/2"):
        load_grouping(path)


def test_the_command_prints_what_each_source_is_worth(
    folder: Path, tmp_path: Path, run_cli: Callable[..., Any]
) -> None:
    out, placed = str(tmp_path / "g.json"), str(tmp_path / "p.json")
    shape = ("--nodes", "4", "--gpus-per-node", "1", "--work-limit", "500")
    done = run_cli("group", str(folder), *shape, "-o", out, "--placement-out", placed)
    text = done if isinstance(done, str) else getattr(done, "stdout", str(done))
    assert "homes from" in text
    assert "prompt, first 32 tokens" in text
    assert "labels" not in text
    assert "a session stays where" in " ".join(text.split())


def test_labels_alone_teach_homes(tmp_path: Path, write_trace: Callable[..., Any], run_cli: Callable[..., Any]) -> None:
    """A trace that says domains and no ids of tokens: labels are worth most of the gain, measured, and in the file."""
    folder = planted(tmp_path / "trace", write_trace, prompted=False, labelled=True)
    shape = ("--nodes", "4", "--gpus-per-node", "1", "--work-limit", "3000", "--token-tolerance", "0.5")
    out, placed = str(tmp_path / "g.json"), str(tmp_path / "p.json")
    assert run_cli("group", folder, *shape, "--home-from", "0.25", "-o", out, "--placement-out", placed).code == 0
    file = load_grouping(out)
    sources = {one.name: one for one in file.sources}
    assert list(sources) == [
        "nothing",
        "labels",
        "first 32 tokens",
        "labels, first 32 tokens",
        "first part",
        "labels, first part",
    ]
    gain = sources["nothing"].grouped_sends - sources["first part"].grouped_sends
    assert gain > 0.1
    assert sources["nothing"].grouped_sends - sources["labels"].grouped_sends > 0.9 * gain
    router = load_router(out)
    assert router.prices is not None and router.prices.tolerance == 0.5
    assert router.assign(labels={"domain": "kind 2"}).why == "labels"
    assert file.session_tokens is not None and file.session_tokens > 0
