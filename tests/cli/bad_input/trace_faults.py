"""Edits that break a trace, each with the words that its refusal must have."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

Edit = Callable[[Any], object]


def change_tensor(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    def edit(trace: Any) -> None:
        tensors = load_file(trace.shards[1])
        tensors[name] = np.ascontiguousarray(change(tensors[name]))
        save_file(tensors, trace.shards[1], metadata={"schema": "expert-trace/1"})

    return edit


def with_ids(row: list[int]) -> Callable[[np.ndarray], np.ndarray]:
    """The sets of layer 1 with token 3's replaced."""

    def change(ids: np.ndarray) -> np.ndarray:
        ids = ids.copy()
        ids[1, 3] = row
        return ids

    return change


def rewrite(change: Callable[[bytes], bytes]) -> Edit:
    return lambda trace: trace.shards[1].write_bytes(change(trace.shards[1].read_bytes()))


def header_garbage(content: bytes) -> bytes:
    (size,) = struct.unpack("<Q", content[:8])
    return content[:8] + b"\xfe" * size + content[8 + size :]


def drop_tensor(name: str) -> Edit:
    def edit(trace: Any) -> None:
        tensors = load_file(trace.shards[1])
        del tensors[name]
        save_file(tensors, trace.shards[1])

    return edit


def other_schema(trace: Any) -> None:
    save_file(load_file(trace.shards[1]), trace.shards[1], metadata={"schema": "expert-trace/9"})


SHARD_FAULTS: dict[str, tuple[Edit, tuple[str, ...]]] = {
    "half of it": (rewrite(lambda b: b[: len(b) // 2]), ("shard-00001", "truncated")),
    "last byte missing": (rewrite(lambda b: b[:-1]), ("shard-00001", "truncated")),
    "cut in the header": (rewrite(lambda b: b[:20]), ("shard-00001", "truncated")),
    "nothing in it": (rewrite(lambda b: b""), ("shard-00001", "truncated")),
    "random bytes": (rewrite(lambda b: np.random.default_rng(0).bytes(len(b))), ("shard-00001", "truncated")),
    "header of garbage": (rewrite(header_garbage), ("shard-00001", "truncated")),
    "bytes too many": (rewrite(lambda b: b + b"more"), ("shard-00001",)),
    "header size of 2^63": (rewrite(lambda b: struct.pack("<Q", 2**63) + b[8:]), ("shard-00001",)),
    "id out of range": (
        change_tensor("expert_ids", with_ids([8, 1])),
        ("shard-00001", "layer 1", "token 3", "8", "0 to 7"),
    ),
    "largest id": (change_tensor("expert_ids", with_ids([255, 1])), ("255", "0 to 7")),
    "twice in a set": (change_tensor("expert_ids", with_ids([5, 5])), ("layer 1", "token 3", "[5, 5]", "twice")),
    "ids int8, negative": (
        change_tensor("expert_ids", lambda a: with_ids([-1, 1])(a.astype(np.int8))),
        ("expert_ids", "I8", "U8"),
    ),
    "ids int32, negative": (
        change_tensor("expert_ids", lambda a: with_ids([-1, 1])(a.astype(np.int32))),
        ("expert_ids", "I32", "U8"),
    ),
    "ids uint16": (change_tensor("expert_ids", lambda a: a.astype(np.uint16)), ("U16", "U8")),
    "ids float32": (change_tensor("expert_ids", lambda a: a.astype(np.float32)), ("expert_ids", "F32", "U8")),
    "ids float16": (change_tensor("expert_ids", lambda a: a.astype(np.float16)), ("expert_ids", "F16", "U8")),
    "ids of fewer layers": (change_tensor("expert_ids", lambda a: a[:1]), ("expert_ids", "[1, 30, 2]", "[2, 30, 2]")),
    "ids of more experts a token": (
        change_tensor("expert_ids", lambda a: np.concatenate([a, a], axis=2)),
        ("[2, 30, 4]", "[2, 30, 2]"),
    ),
    "ids token-major": (change_tensor("expert_ids", lambda a: a.transpose(1, 0, 2)), ("[30, 2, 2]", "[2, 30, 2]")),
    "ids flat": (change_tensor("expert_ids", lambda a: a.ravel()), ("[120]", "[2, 30, 2]")),
    "requests of fewer tokens": (change_tensor("request", lambda a: a[:-1]), ("shard-00001",)),
    "requests a table": (change_tensor("request", lambda a: a.reshape(15, 2)), ("request", "[15, 2]")),
    "requests int64": (change_tensor("request", lambda a: a.astype(np.int64)), ("request", "I64", "I32")),
    "positions of fewer tokens": (change_tensor("position", lambda a: a[:-1]), ("position", "[29]")),
    "phase int32": (change_tensor("phase", lambda a: a.astype(np.int32)), ("phase", "I32", "U8")),
    "request beyond the list": (change_tensor("request", lambda a: a + 1), ("request index 6", "0 to 5")),
    "negative request": (change_tensor("request", lambda a: a - 6), ("request index -3",)),
    "no ids": (drop_tensor("expert_ids"), ("no tensor 'expert_ids'",)),
    "no requests": (drop_tensor("request"), ("no tensor 'request'",)),
    "no positions": (drop_tensor("position"), ("no tensor 'position'",)),
    "no phase": (drop_tensor("phase"), ("no tensor 'phase'",)),
    "another schema": (other_schema, ("expert-trace/9",)),
    "it is a folder": (
        lambda trace: (trace.shards[1].unlink(), trace.shards[1].mkdir()),
        ("shard-00001",),
    ),
}


def set_keys(**keys: Any) -> Edit:
    def edit(trace: Any) -> None:
        (trace.folder / "trace.json").write_text(json.dumps(trace.manifest | keys))

    return edit


def drop_key(key: str) -> Edit:
    def edit(trace: Any) -> None:
        left = {k: v for k, v in trace.manifest.items() if k != key}
        (trace.folder / "trace.json").write_text(json.dumps(left))

    return edit


def content(data: bytes) -> Edit:
    return lambda trace: (trace.folder / "trace.json").write_bytes(data)


MANIFEST_FAULTS: dict[str, tuple[Edit, tuple[str, ...]]] = {
    "more tokens than the shards": (set_keys(num_tokens=61), ("num_tokens=61", "60")),
    "fewer tokens than the shards": (set_keys(num_tokens=59), ("num_tokens=59", "60")),
    "a shard is missing": (lambda trace: trace.shards[1].unlink(), ("num_tokens=60", "30")),
    "no shards": (lambda trace: [shard.unlink() for shard in trace.shards], ("num_tokens=60", "0")),
    "another number of layers": (set_keys(layer_ids=[0, 1, 2]), ("expert_ids", "[3, 30, 2]")),
    "another top_k": (set_keys(top_k=3), ("expert_ids", "[2, 30, 3]")),
    "fewer experts than ids": (set_keys(num_experts=4), ("out of range", "0 to 3")),
    "more experts than uint8": (set_keys(num_experts=300), ("U16",)),
    "fewer requests": (set_keys(requests=[{"id": "a"}]), ("request index", "1 requests")),
    "no requests": (set_keys(requests=[]), ("request",)),
    "not JSON": (content(b'{"schema": '), ("trace.json", "JSON")),
    "empty": (content(b""), ("trace.json", "JSON")),
    "not text": (content(b"\xff\xfe\x00"), ("trace.json", "JSON")),
    "a list": (content(b"[]"), ("trace.json", "schema")),
    "deep": (content(b"[" * 100_000), ("trace.json",)),
    "another schema": (set_keys(schema="expert-trace/2"), ("expert-trace/2", "expert-trace/1")),
    "no schema": (drop_key("schema"), ("schema",)),
    "no model": (drop_key("model"), ("model",)),
    "no layer_ids": (drop_key("layer_ids"), ("layer_ids",)),
    "no num_experts": (drop_key("num_experts"), ("num_experts",)),
    "no top_k": (drop_key("top_k"), ("top_k",)),
    "no num_tokens": (drop_key("num_tokens"), ("num_tokens",)),
    "no list of requests": (drop_key("requests"), ("requests",)),
    "layers out of order": (set_keys(layer_ids=[1, 0]), ("layer_ids=[1, 0]", "ascending")),
    "layers twice": (set_keys(layer_ids=[1, 1]), ("layer_ids=[1, 1]",)),
    "no layers": (set_keys(layer_ids=[]), ("layer_ids",)),
    "negative layer": (set_keys(layer_ids=[-1, 0]), ("layer_ids",)),
    "layers are words": (set_keys(layer_ids=["a", "b"]), ("layer_ids",)),
    "no experts": (set_keys(num_experts=0), ("num_experts=0",)),
    "negative experts": (set_keys(num_experts=-8), ("num_experts=-8",)),
    "half an expert": (set_keys(num_experts=8.5), ("num_experts",)),
    "too many experts": (set_keys(num_experts=10**30), ("num_experts",)),
    "top_k of 0": (set_keys(top_k=0), ("top_k=0",)),
    "top_k beyond the experts": (set_keys(top_k=9), ("top_k=9",)),
    "requests are numbers": (set_keys(requests=[1, 2]), ("requests",)),
    "a request without id": (set_keys(requests=[{"domain": "x"}] * 6), ("requests", "id")),
    "groups that do not divide": (set_keys(num_groups=3), ("num_groups=3",)),
    "it is missing": (lambda trace: (trace.folder / "trace.json").unlink(), ("trace.json",)),
    "it is a folder": (
        lambda trace: ((trace.folder / "trace.json").unlink(), (trace.folder / "trace.json").mkdir()),
        ("trace.json",),
    ),
}
