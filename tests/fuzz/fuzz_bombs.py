"""Small files that promise much: what a fuzzer seldom finds, written by hand, by target."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Mapping
from functools import cache

import numpy as np
from safetensors.numpy import save

NEST = 20_000
HUGE = 10**12
MAP = {"schema": "expert-placement/1", "cluster": {"num_nodes": 1, "gpus_per_node": 1, "slots_per_gpu": 2}}


def everywhere() -> dict[str, bytes]:
    """For any target."""
    laughs = [b"a: &a [1, 1, 1, 1, 1, 1, 1, 1]"]
    laughs += [b"%c: &%c [%s]" % (98 + n, 98 + n, b", ".join([b"*%c" % (97 + n)] * 8)) for n in range(12)]
    return {
        "nothing": b"",
        "deep lists": b"[" * NEST + b"]" * NEST,
        "deep objects": b'{"a":' * NEST,
        "a number of 5000 digits": b'{"schema": ' + b"9" * 5000 + b"}",
        "aliases of aliases": b"\n".join(laughs),
        "all bytes": bytes(range(256)) * 4,
        "the beginning of a zip": b"PK\x03\x04" + bytes(60),
    }


def npy_header(shape: tuple[int, ...], descr: str) -> bytes:
    """A .npy without values."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def safetensors_header(entries: Mapping[str, object], body: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + body


def zip_of(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def gguf_overlap() -> bytes:
    """2000 tensors of a million values each, all at the same place, in a file that holds none."""
    content = b"GGUF" + struct.pack("<IQQ", 3, 2000, 0)
    for layer in range(2000):
        name = f"blk.{layer}.ffn_up_exps.weight.counts".encode()
        content += struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, 1 << 20, 0, 0)
    return content + bytes(1 << 12)


def stacked(shape: list[int], size: int) -> bytes:
    name = "model.layers.1.mlp.experts.{}_proj"
    entries = {
        name.format("gate_up"): {"dtype": "U8", "shape": shape, "data_offsets": [0, size]},
        name.format("down"): {"dtype": "U8", "shape": shape, "data_offsets": [size, 2 * size]},
    }
    return safetensors_header(entries, bytes(2 * size))


def numbered(expert: object, layer: object = 1, before: str = "model.") -> bytes:
    name = f"{before}layers.{layer}.mlp.experts.{expert}.gate_proj.weight"
    return safetensors_header({name: {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"\0")


@cache
def bombs() -> dict[str, dict[str, bytes]]:
    layers = {"name": "m", "layer_ids": [0, 10**9], "num_experts": 2, "top_k": 1}
    far = json.dumps(MAP | {"model": layers, "physical_to_logical": [[0, 1], [0, 1]]}).encode()
    one_expert = np.zeros((1, 40_000), dtype=np.int64)
    counts = np.zeros((1, 40_000), dtype=np.int64)
    counts[0, 0] = 40_000
    wide = b"a: &a [" + b"1, " * 4_000 + b"1]\ntopology: {rank_cost: [" + b"*a, " * 4_000 + b"*a]}\n"
    slots = b"&a [" + b"1, " * 1_999 + b"1]"
    rows = b"num_slots: 2000\ninitial_global_assignments:\n  0: " + slots + b"\n"
    return {
        "counts-npy": {
            "a shape without bytes": npy_header((HUGE, 1, 1), "<i8"),
            "no width": npy_header((HUGE, 0), "|u1"),
        },
        "read-arrays-npz-npz": {
            "rows without bytes": zip_of({"expert_ids.npy": npy_header((HUGE, 1, 0), "<i8")}),
            "layers without end": zip_of({"expert_ids.npy": npy_header((1, HUGE, 0), "<i8")}),
        },
        "read-vllm-arrays-npy": {
            "rows without bytes": npy_header((HUGE, 1, 0), "|u1"),
            "layers without end": npy_header((1, HUGE, 0), "|u1"),
            "a set of 40000": npy_header((1, 1, 40_000), "|u1") + bytes([1]) * 40_000,
        },
        "read-llama-cpp-imatrix-gguf": {"tensors on top of each other": gguf_overlap()},
        "checkpoint": {
            "experts without bytes": stacked([HUGE, 0], 0),
            "experts of less than a byte": stacked([HUGE], 4),
            "expert of a large number": numbered(10**9),
            "expert of 5000 digits": numbered("9" * 5000),
            "layer of 5000 digits": numbered(0, layer="9" * 5000),
            "a name that matches slowly": numbered(0, before="layers.1.experts." * 4000),
            "a header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
        },
        "map-deepseek-eplb-safetensors": {
            "a table of copies that does not fit": save(
                {"phy2log": one_expert, "logcnt": counts, "log2phy": counts[None]}
            )
        },
        "map-omni-infer-npy": {"a shape without bytes": npy_header((HUGE, 1, 1), "<i4")},
        "map-tensorrt-llm-yaml": {"aliased rows": rows + b"".join(b"  %d: *a\n" % n for n in range(1, 2_000))},
        "cluster": {"aliased costs": b"num_nodes: 2\n" + wide},
        "placement": {"layers far apart": far},
        "checkpoint-manifest": {"files elsewhere": b'{"others": ["../../x"]}'},
        "checkpoint-sources": {"files elsewhere": b'{"..": "{}", "a/b": "{}"}'},
    }
