"""Drafts that were rejected are load of the decode phase; figures can be had without them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from speculating_server import EXPERTS, LAYERS, Server, dump, rows_of, sets

from placement.cli import main
from placement.core.cluster import Cluster
from placement.core.placement import Placement
from placement.cost.evaluation import evaluate
from placement.errors import OptionError, TraceError
from placement.pipeline.with_homes import _default_cut
from placement.readers.convert import convert
from placement.traces.classes import split_classes
from placement.traces.format import DECODE, DRAFT, PREFILL
from placement.traces.trace import Cut, Trace, open_trace
from placement.traces.write import merge_traces
from placement.workload.count import count
from placement.workload.counts_folder import count_to_folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `placement ...` and returns what it prints, or its error."""

    def run(*arguments: str | Path) -> str:
        try:
            main([*map(str, arguments)])
        except SystemExit as end:
            assert end.code in (0, 2)
        captured = capsys.readouterr()
        return captured.out or captured.err

    return run


@pytest.fixture
def drafted(tmp_path: Path) -> Trace:
    """A trace of three requests with drafts, some of them rejected."""
    server = Server(np.random.default_rng(6), 4)
    server.prefill(30, 300, 600)
    for accepted in (1, 2, 4, 3, 1, 2) * 8:
        server.verify(dict.fromkeys(range(3), accepted))
    return open_trace(convert(dump(tmp_path / "x.pt", server.records), tmp_path / "drafted").output)


def test_figures_without_drafts(drafted: Trace, tmp_path: Path) -> None:
    """The same trace, one that is written without them, and a count by hand say the same."""
    rows = rows_of(drafted)
    kept = [row for row in rows if row[2] != DRAFT]
    assert 0 < len(kept) < len(rows)
    bare = drafted.without_drafts()
    assert rows_of(bare) == kept and rows_of(drafted) == rows
    merge_traces(bare, tmp_path / "bare")
    written = open_trace(tmp_path / "bare")
    load = np.zeros((LAYERS, EXPERTS), dtype=np.int64)
    for row in kept:
        for layer in range(LAYERS):
            load[layer, row[3][layer]] += 1
    for trace in (bare, written):
        counted = count(trace)
        assert counted.num_tokens == len(kept) and np.array_equal(counted.load_LE, load)
    cluster = Cluster.fit(EXPERTS, num_nodes=2, gpus_per_node=1)
    phy2log_LP = np.tile(np.arange(EXPERTS, dtype=np.int32), (LAYERS, 1))
    placement = Placement(model=drafted.model, phy2log_LP=phy2log_LP, num_nodes=2, gpus_per_node=1, slots_per_gpu=4)
    one, other = (evaluate(trace, [placement], cluster=cluster)[0] for trace in (bare, written))
    assert np.array_equal(one.sends_L, other.sends_L) and np.array_equal(one.load_LP, other.load_LP)
    with pytest.raises(OptionError, match="whole traces"):
        count_to_folder(bare, tmp_path / "counts", holdout=0, seed=0)


def test_drafts_are_of_the_decode_class(drafted: Trace) -> None:
    """A map for decode serves what decode steps send; without drafts, and split as well, the rest is the tokens."""
    rows = rows_of(drafted)
    for trace, phases in ((drafted, (DECODE, DRAFT)), (drafted.without_drafts(), (DECODE,))):
        _, _, _, sides = split_classes(trace, "phase", 0, 0)
        assert [int(side[0].tokens_Q().sum()) for side in sides] == [
            sum(row[2] == PREFILL for row in rows),
            sum(row[2] in phases for row in rows),
        ]


def test_info_tells_drafts_apart(drafted: Trace, tmp_path: Path, run: Callable[..., str]) -> None:
    """Prompts, accepted tokens and drafts are counted apart; a draft is no token that was recorded twice."""
    rows = rows_of(drafted)
    prefill, decode, drafts = (sum(row[2] == phase for row in rows) for phase in (PREFILL, DECODE, DRAFT))
    folder = tmp_path / "drafted"
    assert f"({prefill:,} prefill, {decode:,} decode, {drafts:,} rejected drafts)" in run("traces", "info", folder)
    bare = run("traces", "info", folder, "--without-drafts")
    assert f"{prefill + decode:,} tokens ({prefill:,} prefill, {decode:,} decode) in 3 requests" in bare
    document = json.loads(run("traces", "info", folder, "--json"))
    assert (document["prefill_tokens"], document["decode_tokens"], document["draft_tokens"]) == (
        prefill,
        decode,
        drafts,
    )
    assert not any("repeat" in sentence or "gaps" in sentence for sentence in document["missing"])
    plain = json.loads(run("traces", "info", folder, "--without-drafts", "--json"))
    assert plain["mean"]["overlap"] == document["mean"]["overlap"] and plain["draft_tokens"] == 0


def test_options_without_drafts(drafted: Trace, tmp_path: Path, run: Callable[..., str]) -> None:
    """`evaluate` and `merge` take the same tokens; counts, which do not know them, refuse the option."""
    folder, bare = tmp_path / "drafted", tmp_path / "bare"
    kept = sum(row[2] != DRAFT for row in rows_of(drafted))
    assert f"{kept:,} tokens" in run("traces", "merge", folder, "--without-drafts", "-o", bare)
    assert len(rows_of(open_trace(bare))) == kept
    run("solve", folder, "--nodes", "2", "--gpus-per-node", "1", "--solver", "linear", "-o", tmp_path / "map.json")
    measure = ("--map", tmp_path / "map.json", "--json")
    one, other = run("evaluate", folder, "--without-drafts", *measure), run("evaluate", bare, *measure)
    assert json.loads(one)["maps"] == json.loads(other)["maps"]
    assert json.loads(run("evaluate", folder, *measure))["maps"] != json.loads(one)["maps"]
    run("traces", "count", folder, "-o", tmp_path / "counts")
    np.save(tmp_path / "counts.npy", np.ones((3, LAYERS, EXPERTS), dtype=np.int64))
    counts = tmp_path / "counts.npy"
    for command in (("merge", tmp_path / "counts", "-o", tmp_path / "x"), ("info", counts, "--top-k", "2")):
        assert "--without-drafts is for traces" in run("traces", *command, "--without-drafts")


def test_homes_are_not_cut_where_there_is_no_prefill(drafted: Trace) -> None:
    """Decode and drafts alone have no prefill that a home could be chosen from."""
    rest = replace(drafted, cut=Cut(position_Q=None, rest=True))
    assert (_default_cut(drafted), _default_cut(rest), _default_cut(rest.without_drafts())) == (
        "prefill",
        "0.25",
        "0.25",
    )


@pytest.mark.parametrize("phase", [[0, 1, 2], [0, 1, 3]])
def test_arrays_of_a_script_may_have_drafts(phase: list[int], tmp_path: Path) -> None:
    """What a script says of phases is read up to the last phase that there is."""
    ids = np.moveaxis(sets(np.random.default_rng(7), 3), 1, 0)
    np.savez(tmp_path / "x.npz", expert_ids=ids, phase=np.array(phase))
    if max(phase) > DRAFT:
        with pytest.raises(TraceError, match=r"phase has .* from 0 to 3; whole numbers to 2 are allowed"):
            convert(tmp_path / "x.npz", tmp_path / "out")
        return
    done = convert(tmp_path / "x.npz", tmp_path / "out")
    assert [row[2] for row in rows_of(open_trace(done.output))] == phase
