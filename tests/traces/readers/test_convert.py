"""What a conversion leaves out, maps and refuses, on recordings made here; and how fast it is."""

from __future__ import annotations

import base64
import io
import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from placement.core.model import ranges
from placement.errors import InputError, OptionError, OutputError, TraceError
from placement.readers.base import ReadOptions, parse_ids
from placement.readers.convert import Conversion, convert
from placement.readers.count_rows import MOST_ROWS, CountRows
from placement.readers.sglang_requests import RequestTracker
from placement.traces.trace import open_trace
from placement.workload.counts_file import read_counts

Array = npt.NDArray[Any]
GOLDEN = Path(__file__).parents[2] / "golden" / "readers"


def sets(seed: int, *shape: int, experts: int = 6, top_k: int = 2) -> Array:
    """Random top-k sets of the given shape."""
    return np.argsort(np.random.default_rng(seed).random((*shape, experts)), axis=-1)[..., :top_k]


def dump(path: Path, ids: list[Array], slots: Array, *, mode: int = 1, **other: Any) -> Path:
    """A per_token dump of one pass for each array [L, T, K]."""
    records = [
        {
            "forward_pass_id": number,
            "forward_mode": mode,
            "positions": list(range(one.shape[1])),
            "extend_seq_lens": [one.shape[1]],
            "topk_ids_of_layer": torch.tensor(np.ascontiguousarray(one, dtype=np.int32)),
        }
        | other
        for number, one in enumerate(ids)
    ]
    torch.save({"records": records, "last_physical_to_logical_map": torch.tensor(slots)}, path)
    return path


def ids_of(folder: Path) -> Array:
    """[L, T, K] of all tokens of a trace."""
    trace = open_trace(folder)
    return np.concatenate(
        [np.stack([block.ids_TK(layer) for layer in range(trace.model.num_layers)]) for block in trace.blocks()], axis=1
    )


def notes_of(done: Conversion) -> str:
    return "; ".join(done.notes)


LINEAR = np.arange(6)[None].repeat(2, axis=0)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), num_passes=st.integers(1, 3), redundant=st.integers(0, 4))
def test_physical_ids_become_logical(
    seed: int, num_passes: int, redundant: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the map and whichever replica was chosen, the trace has the experts that the tokens visited."""
    rng = np.random.default_rng(seed)
    slots = np.stack([rng.permutation(np.concatenate([np.arange(6), rng.integers(0, 6, redundant)])) for _ in range(2)])
    logical = [sets(seed + number, 2, 5) for number in range(num_passes)]
    physical = []
    for ids in logical:
        found = np.zeros_like(ids)
        for place in np.ndindex(*ids.shape):
            found[place] = rng.choice(np.flatnonzero(slots[place[0]] == ids[place]))
        physical.append(found)
    folder = tmp_path_factory.mktemp("dump")
    done = convert(dump(folder / "x.pt", physical, slots), folder / "out")
    assert np.array_equal(ids_of(folder / "out"), np.concatenate(logical, axis=1))
    assert done.model.num_experts == 6 and done.num_requests == num_passes
    assert open_trace(folder / "out").model.num_hidden_layers == 2


def test_tokens_without_a_set_are_left_out(tmp_path: Path) -> None:
    """Rows that no layer wrote go; a token that lacks one layer stays; the rest is as it was."""
    ids = sets(1, 2, 9)
    ids[:, 3] = -1
    ids[0, 5] = -1
    done = convert(dump(tmp_path / "x.pt", [ids], LINEAR), tmp_path / "out")
    kept = [row for row in range(9) if row != 3]
    assert np.array_equal(ids_of(tmp_path / "out"), ids[:, kept])
    assert "1 unused rows, in x.pt" in notes_of(done)
    assert "1 of 8 tokens have fewer than 2 experts in some layer (2 places, 6.25%)" in notes_of(done)


@pytest.mark.parametrize(("tokens", "kept"), [(14, 14), (16, 0)])
def test_warm_up_batches_are_left_out(tokens: int, kept: int, tmp_path: Path) -> None:
    """Rows that repeat the one before fifteen times or more are an engine's dummies, and so are their like anywhere."""
    dummy = np.broadcast_to(np.array([[[4, 1]], [[2, 5]]]), (2, tokens, 2))
    padded = np.concatenate([sets(3, 2, 4), dummy[:, :2]], axis=1)
    done = convert(dump(tmp_path / "x.pt", [dummy, padded], LINEAR), tmp_path / "out")
    assert done.num_tokens == kept + 4 + (2 if kept else 0)
    assert (f"{tokens + 2} warm-up tokens" in notes_of(done)) == (kept == 0)


def test_dense_layers_of_one_expert_a_token(tmp_path: Path) -> None:
    """With top-1, a dense layer's zeros look like expert 0: a layer of nothing else is left out."""
    ids = np.random.default_rng(0).integers(0, 6, (30, 3, 1)).astype(np.uint8)
    ids[:, 0] = 0
    np.save(tmp_path / "x.npy", ids)
    done = convert(tmp_path / "x.npy", tmp_path / "out")
    assert done.model.layer_ids == (1, 2) and done.model.top_k == 1
    assert "layer 0 left out: dense" in notes_of(done)


def test_ranks_that_recorded_the_same_tokens(tmp_path: Path) -> None:
    """Under tensor parallelism every rank dumps the same passes: they count once."""
    folder = tmp_path / "dumps"
    folder.mkdir()
    same, other = sets(1, 2, 6), sets(2, 2, 6)
    dump(folder / "r_0.pt", [same, other], LINEAR)
    dump(folder / "r_1.pt", [same, sets(3, 2, 6)], LINEAR)
    done = convert(folder, tmp_path / "out")
    assert done.num_tokens == 18 and done.num_requests == 3


def test_dumps_of_different_maps_are_refused(tmp_path: Path) -> None:
    """The map of one file would misread the ids of another."""
    folder = tmp_path / "dumps"
    folder.mkdir()
    dump(folder / "r_0.pt", [sets(1, 2, 6)], LINEAR)
    dump(folder / "r_1.pt", [sets(2, 2, 6)], LINEAR[:, ::-1].copy())
    with pytest.raises(TraceError, match=r"r_1\.pt has another last_physical_to_logical_map"):
        convert(folder, tmp_path / "out")


def test_requests_are_followed_through_passes() -> None:
    """Prefill, decode, a request that ends, one that joins, a prompt in chunks, a cached prefix, a mixed pass."""
    tracker = RequestTracker()

    def prefill(*segments: tuple[int, int], decode: tuple[int, ...] = ()) -> list[int]:
        starts = [start for start, _ in segments] + list(decode)
        lengths = [length for _, length in segments] + [1] * len(decode)
        return tracker.follow(starts, lengths, [False] * len(segments) + [True] * len(decode))

    assert prefill((0, 5), (0, 7)) == [0, 1]
    assert prefill(decode=(5, 7)) == [0, 1]
    assert prefill((0, 8)) == [2]
    assert prefill((8, 3), (0, 4)) == [2, 3]  # the rest of 2, and another
    assert prefill((6, 2)) == [4]  # behind a cached prefix; 0 stands at 6 too, but decodes
    assert prefill(decode=(6, 11, 4, 8)) == [0, 2, 3, 4]  # 1 is done: it stood at 8, as 4 does, but before 2
    assert prefill((0, 2), decode=(7, 12, 5, 9)) == [5, 0, 2, 3, 4]
    assert prefill() == []  # an idle pass
    assert prefill(decode=(8, 6, 2)) == [0, 3, 5]
    assert prefill(decode=(40,)) == [6]  # recording began in the middle of it


MAP_DEFECTS = {
    "an expert without a slot": (
        np.array([[0, 1, 2, 3, 4, 5], [0, 1, 2, 2, 4, 5]]),
        "no slot for expert 3 of 6 in layer 1",
    ),
    "an id that no slot can hold": (np.array([[0, 1, 2, 3, 4, 6]] * 2), "has expert 6; 0 to 5 are possible in 6 slots"),
    "a negative id": (np.array([[0, 1, 2, 3, 4, -1]] * 2), "has expert -1; 0 to 5 are possible in 6 slots"),
    "numbers that are not whole": (LINEAR.astype(np.float32), "must be whole numbers"),
    "no layers": (np.arange(6), "must be whole numbers"),
    "too few layers": (LINEAR[:1], "record 0 has 2 layers"),
}


@pytest.mark.parametrize("defect", MAP_DEFECTS)
def test_defects_of_a_dump_s_map(defect: str, tmp_path: Path) -> None:
    """A map that would misread ids in silence is refused; SGLang itself checks none of it."""
    slots, match = MAP_DEFECTS[defect]
    with pytest.raises(TraceError, match=match):
        convert(dump(tmp_path / "x.pt", [sets(0, 2, 4)], slots), tmp_path / "out")


@given(st.integers(1, 1500), st.integers(0, 20))
def test_rows_of_counts_are_bounded(passes: int, seed: int) -> None:
    """However many passes there are, at most MOST_ROWS rows are held, and they add up to what was counted."""
    rows = CountRows((1, 2))
    values = np.random.default_rng(seed).integers(0, 9, (passes, 1, 2))
    for number, value in enumerate(values):
        rows.add(value.astype(np.int64), key=number)
    rows.add(np.ones((1, 2), dtype=np.int64), key=passes - 1)
    found = rows.array()
    assert len(found) <= MOST_ROWS
    assert np.array_equal(found.sum(axis=0), values.sum(axis=0) + 1)
    last = (passes - 1) // rows.width * rows.width
    assert np.array_equal(found[-1], values[last:].sum(axis=0) + 1)


def response(ids: Array, **usage: int) -> str:
    buffer = io.BytesIO()
    np.save(buffer, ids)
    text = base64.b64encode(buffer.getvalue()).decode()
    return json.dumps({"id": "q", "choices": [{"routed_experts": text}], "usage": usage})


def test_a_prompt_that_was_left_out_shifts_positions(tmp_path: Path) -> None:
    """`routed_experts_prompt_start` drops the first rows: positions and phases still are those of the request."""
    ids = sets(0, 6, 2).astype(np.uint8)
    (tmp_path / "x.jsonl").write_text(response(ids, prompt_tokens=8, total_tokens=11))
    convert(tmp_path / "x.jsonl", tmp_path / "out")
    block = next(open_trace(tmp_path / "out").blocks())
    assert block.column_T("position").tolist() == [4, 5, 6, 7, 8, 9]
    assert block.column_T("phase").tolist() == [0, 0, 0, 0, 1, 1]


def test_experts_that_no_token_visits_can_be_told(tmp_path: Path) -> None:
    """Without --experts the largest id is the last expert, which is said; with it nothing is guessed."""
    np.save(tmp_path / "x.npy", sets(0, 20, 2).astype(np.uint8))
    assert "largest id plus one" in notes_of(convert(tmp_path / "x.npy", tmp_path / "a"))
    done = convert(
        tmp_path / "x.npy", tmp_path / "b", options=ReadOptions(num_experts=300, layer_ids=(3, 7), model="m")
    )
    assert "largest id" not in notes_of(done)
    assert (done.model.num_experts, done.model.layer_ids, done.model.name) == (300, (3, 7), "m")
    with pytest.raises(TraceError, match=r"x\.npy: layer \d, token \d+ has expert ids .* 0 to 2 are allowed"):
        convert(tmp_path / "x.npy", tmp_path / "c", options=ReadOptions(num_experts=3))


def test_a_log_of_two_runs(tmp_path: Path) -> None:
    """A second line of type meta starts a run whose requests are others, though they have the same names."""
    lines = []
    for _ in range(2):
        lines.append({"type": "meta", "num_experts": 6})
        lines += [
            {"type": "route", "req_id": "a", "token_idx": t, "layer": layer, "topk_ids": sets(t, 1)[0].tolist()}
            for t in range(3)
            for layer in (1, 2)
        ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = convert(tmp_path / "x.jsonl", tmp_path / "out")
    assert (done.num_tokens, done.num_requests) == (6, 2)


def with_record(**other: Any) -> Callable[[Path], Path]:
    return lambda folder: dump(folder / "x.pt", [sets(0, 2, 4)], LINEAR, **other)


def with_ids(ids: Array) -> Callable[[Path], Path]:
    return lambda folder: dump(folder / "x.pt", [ids], LINEAR)


def with_bytes(name: str, content: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(content)
        return folder / name

    return write


def with_array(array: Array) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        np.save(folder / "x.npy", array)
        return folder / "x.npy"

    return write


def with_named(**arrays: Array) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        np.savez(folder / "x.npz", **arrays)  # type: ignore[arg-type]
        return folder / "x.npz"

    return write


def with_statistics(meta: str, **tensors: Array) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "meta_info.json").write_text(meta)
        save_file(tensors, folder / "rank0.safetensors")
        return folder

    return write


def route(**other: Any) -> str:
    line = {"type": "route", "req_id": "a", "token_idx": 0, "layer": 1, "topk_ids": [1, 2]}
    return json.dumps(line | other) + "\n"


def routed(**other: Any) -> str:
    line = {"step": 0, "block": "decoder", "layer": 1, "num_tokens": 1, "topk": 2, "top_indices": [[1, 2]]}
    return json.dumps(line | other) + "\n"


ONES = np.ones(4, dtype=np.int64)
BYTES = sets(0, 4, 3).astype(np.uint8)
TWICE = np.array([[[1, 1]], [[2, 3]]])
META = '{"num_experts": 4, "num_experts_per_token": 2}'
BAD: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "sglang, fused shared expert": ("sglang", with_ids(sets(0, 2, 4) + 5), "layer 0, token 0 .*disable-shared-experts"),
    "sglang, negative": ("sglang", with_ids(sets(0, 2, 4) - 3), "x.pt: record 0: expert id -3 is negative"),
    "sglang, twice": ("sglang", with_ids(TWICE), r"layer 0, token 0 has experts \[1, 1\]"),
    "sglang, nothing": ("sglang", with_ids(np.full((2, 4, 8), -1)), "no token has any expert"),
    "sglang, other layers": ("sglang", with_ids(sets(0, 3, 4)), "x.pt: record 0 has 3 layers"),
    "sglang, dtype": (
        "sglang",
        with_record(topk_ids_of_layer=torch.zeros((2, 4, 2))),
        "record 0: topk_ids_of_layer must be int32",
    ),
    "sglang, positions": ("sglang", with_record(positions=[0]), "record 0: positions must be 4 whole numbers"),
    "sglang, lengths": ("sglang", with_record(extend_seq_lens=[3]), "record 0: extend_seq_lens does not add up to 4"),
    "sglang, no lengths": (
        "sglang",
        with_record(extend_seq_lens=None),
        "record 0 is a pass of prompts without extend_",
    ),
    "sglang, mode": ("sglang", with_record(forward_mode=None), "record 0: forward_mode is None"),
    "vllm, dtype": ("vllm", with_array(sets(0, 4, 2).astype(np.float32)), "has shape .* and dtype float32"),
    "vllm, shape": ("vllm", with_array(sets(0, 4).astype(np.uint8)), "of whole numbers is needed"),
    "vllm, twice": ("vllm", with_array(TWICE.astype(np.uint8)), r"layer 0, token 0 has experts \[1, 1\]"),
    "vllm, nothing": ("vllm", with_array(np.zeros((4, 2, 2), dtype=np.uint8)), "no token has any expert"),
    "vllm, no key": (
        "vllm",
        with_bytes("x.jsonl", '{"choices": [{}]}'),
        ": 1 response without .*--enable-return-routed-experts",
    ),
    "vllm, no choices": (
        "vllm",
        with_bytes("x.jsonl", '{"id": 1}'),
        r"has no response .*: x\.jsonl left out: .*; start vLLM",
    ),
    "vllm, base64": ("vllm", with_bytes("x.jsonl", '{"choices": [{"routed_experts": "*"}]}'), "cannot read .*line 1"),
    "vllm, mixed": (
        "vllm",
        with_bytes(
            "x.jsonl", response(sets(0, 4, 2).astype(np.uint8)) + "\n" + response(sets(0, 4, 3).astype(np.uint8))
        ),
        "line 2 has 3 layers",
    ),
    "sglang-responses, no key": (
        "sglang-responses",
        with_bytes("x.jsonl", '{"meta_info": {}}'),
        r"1 response without routed_experts left out \(x.jsonl: line 1\); start SGLang",
    ),
    "routing-log, empty": ("routing-log", with_bytes("x.jsonl", ""), "no lines of type route"),
    "routing-log, no layer": ("routing-log", with_bytes("x.jsonl", route(layer=None)), "line 1: layer is None"),
    "routing-log, ids": ("routing-log", with_bytes("x.jsonl", route(topk_ids="1")), "line 1: topk_ids is '1'"),
    "routing-log, repeats": (
        "routing-log",
        with_bytes("x.jsonl", route() * 2 + route(layer=2)),
        "line 2 repeats layer 1",
    ),
    "routing-log, weights": ("routing-log", with_bytes("x.jsonl", route(topk_weights=[1])), "2 numbers are needed"),
    "routing-log, cut off": ("routing-log", with_bytes("x.jsonl", route() + route()[:30]), "line 2 is not JSON"),
    "megatron, shape": ("megatron", with_bytes("x.jsonl", routed(num_tokens=2)), "line 1: top_indices has shape"),
    "megatron, no step": ("megatron", with_bytes("x.jsonl", routed(step=None)), "line 1: step is None"),
    "megatron, other": ("megatron", with_bytes("x.jsonl", '{"a": 1}'), "line 1 .*has no top_indices"),
    "tensorrt-llm, gap": (
        "tensorrt-llm",
        with_statistics(META, **{"1_3": ONES, "3_3": ONES}),
        "no rank has iteration 2 of layer 3",
    ),
    "tensorrt-llm, layer": (
        "tensorrt-llm",
        with_statistics(
            META, **{"1_3": np.ones(4, np.int64), "1_4": np.ones(4, np.int64), "2_3": np.ones(4, np.int64)}
        ),
        "no rank has iteration 2 of layer 4",
    ),
    "tensorrt-llm, experts": (
        "tensorrt-llm",
        with_statistics(META, **{"1_3": np.ones(5, np.int64)}),
        "1_3 must be 4 whole numbers",
    ),
    "tensorrt-llm, meta": ("tensorrt-llm", with_statistics("{}", **{"1_3": np.ones(4)}), "num_experts is None"),
    "tensorrt-llm, key": ("tensorrt-llm", with_statistics(META, x=np.ones(4)), "cannot read .*rank0"),
    "llama-cpp, other": ("llama-cpp", with_bytes("x.gguf", "GGUX" * 9), "does not begin with GGUF"),
    "arrays, no name": (
        "arrays",
        lambda folder: np.savez(folder / "x.npz", a=np.ones(3)) or folder / "x.npz",
        "it has a;",
    ),
    "arrays, columns first": ("arrays", with_array(np.asfortranarray(sets(0, 4, 2))), "stores columns first"),
    "arrays, huge": ("arrays", with_array(np.full((2, 2, 2), [2**40, 1])), "2147483647|out of range"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_recordings_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    """The line says which file and where, what is wrong, and how to mend it; nothing is written."""
    reader, write, match = BAD[case]
    path = write(tmp_path)
    with pytest.raises(InputError, match=match) as refused:
        for suffix in ("", ".npz") if reader in ("tensorrt-llm", "llama-cpp") else ("",):
            try:
                convert(path, tmp_path / f"out{suffix}", reader=reader, options=ReadOptions(top_k=None))
            except OptionError:
                continue
    assert "\n" not in str(refused.value) and ";" in str(refused.value)
    assert not list(tmp_path.glob("out*"))


def test_options_that_contradict_the_recording(tmp_path: Path) -> None:
    """What a recording says is not overruled in silence."""
    path = dump(tmp_path / "x.pt", [sets(0, 2, 4)], LINEAR)
    for options, name in (({"num_experts": 7}, "--experts 7"), ({"top_k": 3}, "--top-k 3")):
        with pytest.raises(OptionError, match=name):
            convert(path, tmp_path / "out", options=ReadOptions(**options))
    for source, output in ((path, "out"), (GOLDEN / "sglang" / "stat", "out.npz"), (GOLDEN / "vllm" / "arrays", "out")):
        with pytest.raises(OptionError, match="--layer-ids names 5 layers"):
            convert(source, tmp_path / output, options=ReadOptions(layer_ids=(1, 2, 3, 4, 5), top_k=2))
    for options, name in (
        ({"num_experts": 7}, "--experts"),
        ({"top_k": 3}, "--top-k"),
        ({"layer_ids": (3, 4)}, "--layer-ids"),
    ):
        with pytest.raises(OptionError, match=f"{name}.* (is not what|has no experts in)"):
            convert(GOLDEN / "llama-cpp" / "imatrix", tmp_path / "out.npz", options=ReadOptions(**options))
    log = with_bytes("x.jsonl", route())(tmp_path)
    with pytest.raises(OptionError, match=r"--layer-ids .* says, 1;"):
        convert(log, tmp_path / "out", options=ReadOptions(layer_ids=(4,)))
    with pytest.raises(OptionError, match=r"--from 'x' is unknown"):
        convert(path, tmp_path / "out", reader="x")


def test_outputs_of_the_wrong_kind(tmp_path: Path) -> None:
    """Tokens become a folder and counts a file; nothing is overwritten."""
    path = dump(tmp_path / "x.pt", [sets(0, 2, 4)], LINEAR)
    with pytest.raises(OptionError, match=r"holds tokens, .* without \.npz"):
        convert(path, tmp_path / "out.npz")
    with pytest.raises(OptionError, match=r"ends in \.npz"):
        convert(GOLDEN / "sglang" / "stat", tmp_path / "out", options=ReadOptions(top_k=2))
    with pytest.raises(OptionError, match="does not say how many experts a token visits; give --top-k K"):
        convert(GOLDEN / "sglang" / "stat", tmp_path / "out.npz")
    convert(path, tmp_path / "out")
    with pytest.raises(OutputError, match="nothing is overwritten"):
        convert(path, tmp_path / "out")


def test_what_is_of_no_format(tmp_path: Path) -> None:
    """The error names the formats; a trace needs no conversion; a missing file is told apart."""
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(TraceError, match=r"no known format; .*sglang, .*parquet"):
        convert(tmp_path / "x.txt", tmp_path / "out")
    (tmp_path / "trace.json").write_text("{}")
    with pytest.raises(TraceError, match="expert-trace/1 already"):
        convert(tmp_path, tmp_path / "out")
    with pytest.raises(TraceError, match="does not exist"):
        convert(tmp_path / "y", tmp_path / "out")


@pytest.mark.parametrize(("text", "ids"), [("3-5", (3, 4, 5)), ("1, 3,5-6", (1, 3, 5, 6)), ("x", None), ("", None)])
def test_lists_of_layers(text: str, ids: tuple[int, ...] | None) -> None:
    """--layer-ids takes numbers and ranges, and messages write them as few words."""
    if ids is None:
        with pytest.raises(OptionError, match="--layer-ids"):
            parse_ids(text)
    else:
        assert parse_ids(text) == ids
        assert ranges((0, 1, 2, 5)) == "0 to 2, 5"


def test_the_command_line(tmp_path: Path, run_cli: Any) -> None:
    """It says which format it took and why, what was left out, and the same as JSON; solve takes what it wrote."""
    source = GOLDEN / "sglang" / "per-token"
    shown = run_cli("traces", "convert", source, tmp_path / "a")
    assert shown.code == 0, shown.stderr
    assert "as sglang: " in shown.stdout and "16 warm-up tokens" in shown.stdout
    document = json.loads(run_cli("traces", "convert", source, tmp_path / "b", "--from", "sglang", "--json").stdout)
    assert document["reader"] == "sglang" and document["num_tokens"] == 17 and document["layer_ids"] == [1, 2]
    counts = tmp_path / "c.npz"
    assert run_cli("traces", "convert", GOLDEN / "sglang" / "stat", counts, "--top-k", 2).code == 0
    assert read_counts(counts).num_tokens == 17
    assert run_cli("traces", "info", tmp_path / "a").code == 0


@pytest.mark.parametrize("case", ["sglang/per-token", "vllm/responses", "vllm/arrays/a.npy", "arrays/npz/routes.npz"])
def test_solve_names_the_command_that_converts(case: str, run_cli: Any) -> None:
    """A recording given where a trace is wanted: the error says what to run."""
    result = run_cli("solve", GOLDEN / case, "--nodes", 2)
    assert result.code == 2 and f"placement traces convert {GOLDEN / case} OUT" in result.stderr.replace("\n", "")


def test_a_large_dump_converts_fast(tmp_path: Path) -> None:
    """61 layers, 20,000 tokens, top-8 of 256 experts: 5 million ids a second or more."""
    rng = np.random.default_rng(0)
    steps = np.cumsum(rng.integers(1, 32, 8)).astype(np.int32)
    ids = [(rng.integers(0, 256, (61, size, 1), dtype=np.int32) + steps) % 256 for size in (8192, 8192, 3616)]
    for one in ids:
        one[:3] = -1
    path = dump(tmp_path / "x.pt", ids, np.arange(256)[None].repeat(61, axis=0))
    convert(GOLDEN / "sglang" / "per-token", tmp_path / "compiled")
    best = 0.0
    for number in range(3):
        begin = time.perf_counter()
        done = convert(path, tmp_path / f"out-{number}")
        best = max(best, 61 * 20_000 * 8 / (time.perf_counter() - begin))
    assert done.num_tokens == 20_000 and done.model.layer_ids == tuple(range(3, 61))
    assert np.array_equal(ids_of(tmp_path / "out-0"), np.concatenate(ids, axis=1)[3:])
    assert best >= 5e6, f"{best:,.0f} ids a second"


def test_memory_does_not_grow_with_the_ids(tmp_path: Path) -> None:
    """Twice the dump takes at most a fifth of what it is larger, for its lists of positions: ids stay on disk."""
    rng = np.random.default_rng(0)
    steps = np.cumsum(rng.integers(1, 32, 8)).astype(np.int32)
    ids = [(rng.integers(0, 256, (48, 2000, 1), dtype=np.int32) + steps) % 256 for _ in range(4)]
    slots = np.arange(256)[None].repeat(48, axis=0)
    peaks, sizes = [], []
    convert(GOLDEN / "sglang" / "per-token", tmp_path / "loaded")
    for number, passes in enumerate((2, 4)):
        path = dump(tmp_path / f"{number}.pt", ids[:passes], slots)
        tracemalloc.start()
        convert(path, tmp_path / f"out-{number}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        sizes.append(path.stat().st_size)
    assert peaks[1] - peaks[0] < (sizes[1] - sizes[0]) / 5
