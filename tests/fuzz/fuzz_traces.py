"""Targets: traces, counts, folders of counts."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
from fuzz_base import COUNTED_EXPERTS, Seeds, Target, folder, refusing
from safetensors.numpy import save

from placement.documents.pair_file import read_pairs
from placement.traces.synthetic.likeness import Likeness
from placement.traces.trace import open_trace
from placement.workload.count import count
from placement.workload.counts_file import read_counts, write_counts
from placement.workload.counts_folder import count_to_folder, merge_counted, read_counted


def trace_parts(short: bool = False) -> dict[str, bytes]:
    """A trace; `short`: some of its sets have one expert or none."""
    rng = np.random.default_rng(0)
    ids_LTK = np.argsort(rng.random((2, 8, 5)), axis=2)[:, :, :2].astype(np.int16 if short else np.uint8)
    if short:
        ids_LTK[0, 1:3, 1] = ids_LTK[1, 4] = -1
    columns = {"request": np.arange(8, dtype=np.int32) // 4, "position": np.arange(8, dtype=np.int32) % 4}
    shard = {"expert_ids": np.ascontiguousarray(ids_LTK), **columns, "phase": np.zeros(8, dtype=np.uint8)}
    manifest = {
        "schema": "expert-trace/1",
        "model": "tiny",
        "layer_ids": [1, 2],
        "num_experts": 5,
        "top_k": 2,
        "num_tokens": 8,
        "requests": [{"id": "a", "domain": "x"}, {"id": "b", "category": "y"}],
        "num_hidden_layers": 4,
    }
    return {
        "trace.json": json.dumps(manifest).encode(),
        "shard-00000.safetensors": save(shard, metadata={"schema": "expert-trace/1"}),
    }


def trace_file(part: str, *, short: bool = False) -> Target:
    def run(data: bytes) -> None:
        with folder() as base, refusing():
            for name, content in trace_parts(short).items():
                (base / name).write_bytes(data if name == part else content)
            trace = open_trace(base)
            trace.tokens_Q()
            if trace.model.num_experts <= COUNTED_EXPERTS:
                count(trace)

    kind = "json" if part.endswith(".json") else "safetensors"
    return Target(run=run, seeds=lambda: {"sound": trace_parts(short)[part]}, kind=kind)


def counts_file(suffix: str) -> Target:
    def run(data: bytes) -> None:
        with folder() as base, refusing():
            path = base / f"counts{suffix}"
            path.write_bytes(data)
            counts = read_counts(path, None if suffix == ".npz" else 2)
            if counts.model.num_experts <= COUNTED_EXPERTS:
                counts.workload(0)
            write_counts(base / "again.npz", counts.model, counts.count_QLE)
            read_counts(base / "again.npz")

    def seeds() -> Seeds:
        counts_QLE = np.arange(1, 25).reshape(2, 3, 4)
        with folder() as base:
            np.save(base / "a.npy", counts_QLE)
            np.savez(base / "a.npz", counts=counts_QLE, top_k=np.array(2), layer_ids=np.arange(3), model=np.array("m"))
            np.savez_compressed(base / "b.npz", frac=counts_QLE / 300, top_k=np.array(2))
            return {name: (base / name).read_bytes() for name in ("a.npy", "a.npz", "b.npz") if name.endswith(suffix)}

    return Target(run=run, seeds=seeds, kind="npy" if suffix == ".npy" else "zip")


@cache
def _counted_files(short: bool) -> dict[str, bytes]:
    """A folder that `placement traces count` wrote, made once."""
    with folder() as base:
        for name, content in trace_parts(short).items():
            (base / name).write_bytes(content)
        count_to_folder(open_trace(base), base / "counts", holdout=0.5)
        return {one.name: one.read_bytes() for one in (base / "counts").glob("counts.*")}


def counted_file(part: str, *, short: bool = False) -> Target:
    def run(data: bytes) -> None:
        with folder() as base, refusing():
            for name, content in _counted_files(short).items():
                (base / name).write_bytes(data if name == part else content)
            for holdout in (None, 0):
                with refusing():
                    read_counted(base).split(holdout)
            merge_counted([base], base / "merged")

    kind = "json" if part.endswith(".json") else "safetensors"
    return Target(run=run, seeds=lambda: {"sound": _counted_files(short)[part]}, kind=kind)


def pair_file() -> Target:
    def run(data: bytes) -> None:
        with folder() as base, refusing():
            (base / "pairs.json").write_bytes(data)
            like = Likeness.of(read_pairs(base / "pairs.json"))
            if like.model.num_experts <= COUNTED_EXPERTS:
                for pairs in like.pairs_L or ():
                    pairs.vectors_RE(like.model.num_experts)

    def seeds() -> Seeds:
        layer = {"layer": 1, "heat": [40, 60, 30, 20, 50], "pairs": [[0, 1, 36, 1.5], [3, 2, 12, 2.0]]}
        whole = {"model": "tiny", "n_expert_per_layer": 5, "k": 2, "n_decode_tokens": 100}
        bare = {"layer": 4, "heat": [0, 100, 0, 100, 0]}
        return {
            "sound": json.dumps(whole | {"quant": "Q4", "layers": [layer | {"clusters": [[0]]}, bare]}).encode(),
            "loads": json.dumps(whole | {"layers": [bare]}).encode(),
        }

    return Target(run=run, seeds=seeds, kind="json")
