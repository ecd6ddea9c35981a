"""Speculative decoding: right request, right phase, and drafts that were rejected told apart."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from placement.cli import main
from placement.core.cluster import Cluster
from placement.core.placement import Placement
from placement.cost.evaluation import evaluate
from placement.errors import OptionError, TraceError
from placement.pipeline.with_homes import _default_cut
from placement.readers.base import ReadOptions
from placement.readers.convert import Conversion, convert
from placement.readers.sglang_drafts import Drafts
from placement.readers.sglang_requests import RequestTracker
from placement.traces.classes import split_classes
from placement.traces.format import DECODE, DRAFT, PREFILL
from placement.traces.trace import Cut, Trace, open_trace
from placement.traces.write import merge_traces
from placement.workload.count import count
from placement.workload.counts_folder import count_to_folder

Array = npt.NDArray[Any]
LAYERS, EXPERTS, TOP_K = 6, 8, 2  # rows that are alike in six layers, as padding is, do not come by chance
EXTEND, DECODES, VERIFY, DRAFT_EXTEND = 1, 2, 5, 6


def sets(rng: np.random.Generator, tokens: int) -> Array:
    return np.argsort(rng.random((LAYERS, tokens, EXPERTS)), axis=2)[:, :, :TOP_K]


def record(mode: int, positions: list[int], ids_LTK: Array | None, lengths: list[int] | None = None) -> dict[str, Any]:
    """A pass as the recorder has it, of the draft model where `ids_LTK` is None."""
    padded = np.full((LAYERS, len(positions), 8), -1, dtype=np.int32)
    if ids_LTK is not None:
        padded[:, :, :TOP_K] = ids_LTK
    names = {"forward_mode": mode, "positions": positions, "extend_seq_lens": lengths}
    return {"forward_pass_id": 0, "topk_ids_of_layer": torch.tensor(padded), **names}


def dump(path: Path, records: list[dict[str, Any]]) -> Path:
    slots = torch.arange(EXPERTS)[None].repeat(LAYERS, 1)
    numbered = [one | {"forward_pass_id": number} for number, one in enumerate(records)]
    torch.save({"records": numbered, "last_physical_to_logical_map": slots}, path)
    return path


@dataclass
class Server:
    """Runs requests with drafts, and knows what became of each row: (request, position, phase, sets)."""

    rng: np.random.Generator
    width: int
    tree: bool = False
    records: list[dict[str, Any]] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)
    at: dict[int, int] = field(default_factory=dict)  # position of each running request
    last: dict[int, list[list[Any]]] = field(default_factory=dict)
    started: int = 0

    def _row(self, request: int, position: int, phase: int, ids_LK: Array) -> list[Any]:
        row = [str(request), position, phase, ids_LK.tolist()]
        self.rows.append(row)
        return row

    def prefill(self, *lengths: int) -> None:
        positions = [position for length in lengths for position in range(length)]
        ids = sets(self.rng, len(positions))
        self.records.append(record(EXTEND, positions, ids, list(lengths)))
        self.records.append(record(EXTEND, positions, None, list(lengths)))  # the draft model reads the prompt too
        row = iter(np.moveaxis(ids, 1, 0))
        for length in lengths:
            for position in range(length):
                self._row(self.started, position, PREFILL, next(row))
            self.at[self.started] = length
            self.started += 1

    def verify(self, accepted: dict[int, int]) -> None:
        """One pass of the running requests; each goes on by so many positions of which the first is no draft."""
        positions: list[int] = []
        for start in self.at.values():
            depth = [0, *range(1, self.width)]
            if self.tree:  # pairs of siblings: 0 1 1 2 2 ...
                depth = [0, *(1 + step // 2 for step in range(self.width - 1))]
            positions += [start + one for one in depth]
        ids = sets(self.rng, len(positions))
        self.records.append(record(VERIFY, positions, ids))
        self.records.append(record(DRAFT_EXTEND, positions, None, [self.width] * len(self.at)))
        for number, (request, start) in enumerate(list(self.at.items())):
            self._tell(request, start)
            mine = range(number * self.width, (number + 1) * self.width)
            first = {positions[row]: row for row in reversed(mine)}
            phases = [DECODE if first[positions[row]] == row else DRAFT for row in mine]
            self.last[request] = [
                self._row(request, positions[row], phase, ids[:, row]) for row, phase in zip(mine, phases, strict=True)
            ]
            self.at[request] = start + accepted[request]

    def _tell(self, request: int, start: int) -> None:
        for row in self.last.pop(request, ()):
            row[2] = DRAFT if row[1] >= start else row[2]

    def decode(self) -> None:
        """A pass without drafts, as large batches have."""
        ids = sets(self.rng, len(self.at))
        self.records.append(record(DECODES, list(self.at.values()), ids))
        for number, (request, start) in enumerate(list(self.at.items())):
            self._tell(request, start)
            self._row(request, start, DECODE, ids[:, number])
            self.at[request] = start + 1


def rows_of(trace: Trace) -> list[list[Any]]:
    found = []
    for block in trace.blocks():
        ids_TLK = np.stack([block.ids_TK(layer) for layer in range(trace.model.num_layers)], axis=1)
        columns = (block.request_T, block.column_T("position"), block.column_T("phase"), ids_TLK)
        for request, position, phase, ids in zip(*(column.tolist() for column in columns), strict=True):
            found.append([trace.requests[request].id, position, phase, ids])
    return found


def told(done: Conversion) -> str:
    return " | ".join(done.notes)


@given(seed=st.integers(0, 10_000), width=st.integers(2, 6), tree=st.booleans(), requests=st.integers(1, 5))
def test_rows_of_a_server_with_drafts(
    seed: int, width: int, tree: bool, requests: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever is accepted, whoever joins or ends: each row has its request, position and phase, and none is lost."""
    rng = np.random.default_rng(seed)
    server = Server(rng, width, tree=tree)
    lengths = (rng.permutation(requests + 1) * 200 + rng.integers(3, 90, requests + 1)).tolist()
    server.prefill(*lengths[:requests])
    depth = 1 + width // 2 if tree else width
    for turn in range(6):
        if turn == 2:
            server.prefill(lengths[requests])  # one joins
        elif turn == 4 and len(server.at) > 1:
            server.at.pop(next(iter(server.at)))  # one is done
        elif turn and rng.random() < 0.2:  # a dump without any pass that verifies is read as one without drafts
            server.decode()
        else:
            server.verify({request: int(rng.integers(1, depth + 1)) for request in server.at})
    folder = tmp_path_factory.mktemp("server")
    done = convert(dump(folder / "x.pt", server.records), folder / "out")
    assert sorted(rows_of(open_trace(done.output))) == sorted(server.rows)
    rejected = sum(row[2] == DRAFT for row in server.rows)
    if any(one["forward_mode"] == VERIFY for one in server.records):
        assert f"(TARGET_VERIFY) hold {rejected:,} drafts that were rejected" in told(done)
        drafts = sum(len(one["positions"]) for one in server.records if not (one["topk_ids_of_layer"] >= 0).any())
        assert f"{drafts:,} rows of the draft model left out" in told(done)


def test_the_notes_count_what_is_not_known(tmp_path: Path) -> None:
    """Nothing says what was accepted of a last pass, nor which of the siblings of a tree was."""
    server = Server(np.random.default_rng(0), 5, tree=True)
    server.prefill(10)
    server.verify({0: 2})
    server.verify({0: 1})
    done = convert(dump(tmp_path / "x.pt", server.records), tmp_path / "out")
    assert "2 drafts of the last pass of their requests are called decode" in told(done)
    assert "1 accepted tokens had several drafts (a tree)" in told(done)


def test_ranks_that_recorded_the_same_passes(tmp_path: Path) -> None:
    """Under tensor parallelism each rank dumps the same: rows and notes count once; with data parallelism all count."""
    folder = tmp_path / "ranks"
    folder.mkdir()
    servers = [Server(np.random.default_rng(seed), 4) for seed in (1, 2)]
    for server in servers:
        server.prefill(10)
        server.verify({0: 2})
        server.verify({0: 1})
    for rank, server in enumerate((servers[0], servers[0], servers[1])):
        dump(folder / f"r_{rank}.pt", server.records)
    done = convert(folder, tmp_path / "out")
    assert done.num_tokens == 2 * len(servers[0].rows) and done.num_requests == 2
    assert "4 passes of forward_mode 5 (TARGET_VERIFY) hold 4 drafts that were rejected" in told(done)


def test_requests_that_stand_one_behind_the_other(tmp_path: Path) -> None:
    """Two chains that look like one are cut as the running requests stand."""
    server = Server(np.random.default_rng(1), 4)
    server.prefill(20, 24)
    for _ in range(3):
        server.verify({0: 3, 1: 3})
    done = convert(dump(tmp_path / "x.pt", server.records), tmp_path / "out")
    assert sorted(rows_of(open_trace(done.output))) == sorted(server.rows) and done.num_requests == 2


@pytest.mark.parametrize(
    ("positions", "lengths"),
    [
        ([20, 21, 22, 23, 30, 31, 32, 33], [4, 4]),
        ([20, 21, 22, 30, 31], [3, 2]),  # drafts of different lengths
        ([7, 8, 8, 9], [4]),
        ([7, 8, 9, 8, 9, 30, 31, 31, 32, 31], [5, 5]),
        ([20, 21, 22, 23], [4]),
        ([5], [1]),
        ([], []),
    ],
)
def test_passes_are_cut_by_positions(positions: list[int], lengths: list[int]) -> None:
    """A pass that recording began with has no running requests to go by."""
    assert Drafts().cut(np.array(positions, dtype=np.int32), RequestTracker()) == lengths


def test_lengths_that_are_told_are_taken(tmp_path: Path) -> None:
    """A version that gives extend_seq_lens for these passes is believed."""
    rng = np.random.default_rng(2)
    passes = [
        record(VERIFY, [4, 5, 6, 7], sets(rng, 4), [2, 2]),
        record(VERIFY, [5, 6, 8, 9], sets(rng, 4), [2, 2]),
    ]
    done = convert(dump(tmp_path / "x.pt", passes), tmp_path / "out")
    found = sorted(row[:3] for row in rows_of(open_trace(done.output)))
    assert found == [
        ["0", 4, 1],
        ["0", 5, 1],
        ["0", 5, 2],
        ["0", 6, 1],
        ["1", 6, 1],
        ["1", 7, 1],
        ["1", 8, 1],
        ["1", 9, 1],
    ]


@pytest.mark.parametrize("mode", [6, 7])
def test_passes_of_the_draft_model_are_left_out(mode: int, tmp_path: Path) -> None:
    """With ids or without: they are of layers that the map has not. Of a dump without drafts nothing changes."""
    rng = np.random.default_rng(3)
    passes = [record(EXTEND, [0, 1, 2], sets(rng, 3), [3]), record(mode, [1, 2, 3], sets(rng, 3), [3])]
    done = convert(dump(tmp_path / "x.pt", passes), tmp_path / "out")
    assert done.num_tokens == 3 and "3 rows of the draft model left out (forward_mode 6 and 7" in told(done)
    done = convert(dump(tmp_path / "y.pt", [*passes[:1], record(EXTEND, [0], None, [1])]), tmp_path / "plain")
    assert "1 unused rows" in told(done) and "draft model" not in told(done)


def test_other_modes_are_named(tmp_path: Path) -> None:
    """What differs by version is said where it can be read, and refused where it cannot."""
    rng = np.random.default_rng(4)
    done = convert(dump(tmp_path / "x.pt", [record(8, [0, 1], sets(rng, 2), [2])]), tmp_path / "out")
    assert "1 passes of forward_mode 8, which differs by version, were read as prompts" in told(done)
    with pytest.raises(TraceError, match=r"record 0 is a pass of prompts without extend_seq_lens.* \(forward_mode 9\)"):
        convert(dump(tmp_path / "y.pt", [record(9, [0, 1], sets(rng, 2))]), tmp_path / "none")


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_rows_beyond_the_tokens_of_a_response(engine: str, tmp_path: Path) -> None:
    """Of an answer's tokens the last may have a row; what comes after it was drafted and rejected."""
    rng = np.random.default_rng(5)
    ids_TLK = np.moveaxis(sets(rng, 12), 1, 0).astype("<i4")
    usage = {"prompt_tokens": 4, "completion_tokens": 5}
    text = base64.b64encode(ids_TLK.tobytes()).decode()
    response: dict[str, Any] = {"meta_info": {"id": "a", "routed_experts": text} | usage}
    if engine == "vllm":
        value = {"data": text, "shape": ids_TLK.shape, "dtype": "int32"}
        response = {"id": "a", "choices": [{"routed_experts": value}], "usage": usage}
    (tmp_path / "x.jsonl").write_text(json.dumps(response))
    if engine == "sglang":  # 24 ids of 9 tokens cannot be: another response says how wide a row is
        whole = {"meta_info": usage | {"id": "b", "completion_tokens": 9, "routed_experts": text}}
        (tmp_path / "x.jsonl").write_text(json.dumps(whole) + "\n" + json.dumps(response))
    done = convert(tmp_path / "x.jsonl", tmp_path / "out", options=ReadOptions(top_k=TOP_K))
    phases = [row[2] for row in rows_of(open_trace(done.output)) if row[0] == "a"]
    assert phases == [PREFILL] * 4 + [DECODE] * 5 + [DRAFT] * 3
    assert "3 rows beyond the tokens of their responses are called rejected drafts" in told(done)


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
