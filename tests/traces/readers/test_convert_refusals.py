"""Bad recordings, and options that contradict a recording, are refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from converted_dumps import GOLDEN, LINEAR, Array, dump, response, sets
from safetensors.numpy import save_file

from placement.core.model import ranges
from placement.errors import InputError, OptionError, OutputError, TraceError
from placement.readers.base import ReadOptions, parse_ids
from placement.readers.convert import convert


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
    """The error names the formats; a trace needs no conversion; what is missing or empty is told apart."""
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(TraceError, match=r"no known format; .*sglang, .*parquet"):
        convert(tmp_path / "x.txt", tmp_path / "out")
    (tmp_path / "trace.json").write_text("{}")
    with pytest.raises(TraceError, match="expert-trace/1 already"):
        convert(tmp_path, tmp_path / "out")
    with pytest.raises(TraceError, match="does not exist"):
        convert(tmp_path / "y", tmp_path / "out")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for name in ("folder", "file"):
        with pytest.raises(TraceError, match=f"{name} is empty"):
            convert(tmp_path / name, tmp_path / "out")


@pytest.mark.parametrize(("text", "ids"), [("3-5", (3, 4, 5)), ("1, 3,5-6", (1, 3, 5, 6)), ("x", None), ("", None)])
def test_lists_of_layers(text: str, ids: tuple[int, ...] | None) -> None:
    """--layer-ids takes numbers and ranges, and messages write them as few words."""
    if ids is None:
        with pytest.raises(OptionError, match="--layer-ids"):
            parse_ids(text)
    else:
        assert parse_ids(text) == ids
        assert ranges((0, 1, 2, 5)) == "0 to 2, 5"
