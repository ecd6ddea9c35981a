"""Writes recordings of other engines and of scripts: logs, tensors, statistics, arrays and tables."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
from recorded_routing import (
    DUMMIES,
    EXPERTS,
    FIRST_ID,
    IDS,
    LAYERS,
    PASSES,
    REQUESTS,
    TOP_K,
    WEIGHTS,
    expect,
    expect_counts,
    folder,
    hidden,
    pass_counts,
    token,
    tokens_of,
    total_counts,
)


def routing_log() -> None:
    path = folder("routing-log/layer-major")
    with (path / "routes.jsonl").open("w") as file:
        meta = {"type": "meta", "model_id": "tiny", "layers_logged": LAYERS, "top_k": TOP_K, "num_experts": EXPERTS}
        file.write(json.dumps(meta) + "\n")
        index = 100  # token_idx counts the tokens of all calls
        calls: list[tuple[str, np.ndarray, np.ndarray]] = [(name, IDS[name], WEIGHTS[name]) for name in REQUESTS]
        dummy = np.broadcast_to(np.array([[0, 1], [0, 1]]), (DUMMIES, 2, 2))
        calls.insert(0, ("warm-up", dummy, np.full(dummy.shape, 0.5)))
        for name, ids, weights in calls:
            for number, layer in enumerate(LAYERS):
                for row in range(len(ids)):
                    line = {"type": "route", "req_id": name, "token_idx": index + row, "layer": layer}
                    line["topk_ids"] = ids[row, number].tolist()
                    line["topk_weights"] = [round(float(one), 4) for one in weights[row, number]]
                    file.write(json.dumps(line) + "\n")
            index += len(ids)
    requests = {name: tokens_of(name, phases=False) for name in REQUESTS}
    expect("routing-log/layer-major", requests, "tiny", weights=True, left_out={"padding rows": DUMMIES})


def megatron() -> None:
    path = folder("megatron/training")

    def lines(rank: int, step: int, names: str, block: str = "decoder") -> list[dict[str, Any]]:
        found = []
        for name in names:
            for number, layer in enumerate(LAYERS):
                ids = IDS[name][:, number]
                line = {"step": step, "stage": "pre_dispatch", "block": block, "layer": layer, "rank": rank}
                line |= {"num_tokens": len(ids), "topk": TOP_K, "top_indices": ids.tolist()}
                found.append(line | ({"mtp_idx": 0} if block == "mtp" else {}))
        return found

    ranks = [lines(0, 0, "ab") + lines(0, 0, "a", "mtp") + lines(0, 1, "c"), lines(1, 0, "a")]
    for rank, found in enumerate(ranks):
        text = "".join(json.dumps(line) + "\n" for line in found)
        (path / f"router_trace_rank{rank}.jsonl").write_text(text)
    requests = {
        f"router_trace_rank0/step {step}/{number}": tokens_of(name, phases=False)
        for name, step, number in (("a", 0, 0), ("b", 0, 1), ("c", 1, 0))
    }
    expect("megatron/training", requests, "training")


def tensorrt_llm() -> None:
    from safetensors.numpy import save_file

    meta = json.dumps({"num_experts": EXPERTS, "num_experts_per_token": TOP_K})
    path = folder("tensorrt-llm/counts")
    (path / "meta_info.json").write_text(meta)
    counts = pass_counts()
    for rank in range(2):
        tensors = {}
        for iteration in range(len(PASSES)):
            for number, layer in enumerate(LAYERS):
                half = counts[iteration, number] // 2
                tensors[f"{100 + iteration}_{layer}"] = half if rank else counts[iteration, number] - half
        save_file(tensors, path / f"rank{rank}.safetensors")
    expect_counts("tensorrt-llm/counts", counts, "counts")
    path = folder("tensorrt-llm/raw")
    (path / "meta_info.json").write_text(meta)
    tensors = {}
    requests = {}
    for number, name in enumerate(REQUESTS):
        for index, layer in enumerate(LAYERS):
            tensors[f"{100 + number}_{layer}"] = np.ascontiguousarray(IDS[name][:, index].astype(np.int32))
        requests[f"rank0_raw/{100 + number}"] = tokens_of(name, phases=False)
    save_file(tensors, path / "rank0_raw.safetensors")
    save_file({"100_1": np.zeros(EXPERTS, dtype=np.int64)}, path / "rank0.safetensors")
    expect("tensorrt-llm/raw", requests, "raw")


def llama_cpp() -> None:
    path = folder("llama-cpp/imatrix")

    def text(word: str) -> bytes:
        return struct.pack("<Q", len(word)) + word.encode()

    counts = total_counts()
    num_tokens = sum(map(sum, REQUESTS.values()))
    tensors: list[tuple[str, tuple[int, ...], np.ndarray]] = []
    for layer in (0, *LAYERS):
        tensors.append((f"blk.{layer}.attn_q.weight.in_sum2", (4, 1), np.arange(4)))
        tensors.append((f"blk.{layer}.attn_q.weight.counts", (1, 1), np.array([num_tokens])))
        if layer in LAYERS:
            row = counts[LAYERS.index(layer)]
            tensors.append((f"blk.{layer}.ffn_gate_exps.weight.in_sum2", (4, EXPERTS), np.ones(4 * EXPERTS)))
            tensors.append((f"blk.{layer}.ffn_gate_exps.weight.counts", (1, EXPERTS), row))
            tensors.append((f"blk.{layer}.ffn_down_exps.weight.counts", (1, EXPERTS), row))
    keys = [
        text("general.type") + struct.pack("<I", 8) + text("imatrix"),
        text("imatrix.datasets") + struct.pack("<IIQ", 9, 8, 1) + text("words.txt"),
        text("imatrix.chunk_count") + struct.pack("<II", 4, 3),
    ]
    data, infos = b"", b""
    for name, shape, values in tensors:
        infos += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        infos += struct.pack("<IQ", 0, len(data))
        data += values.astype("<f4").tobytes()
        data += b"\0" * (-len(data) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys) + infos
    (path / "imatrix.gguf").write_bytes(head + b"\0" * (-len(head) % 32) + data)
    expect_counts("llama-cpp/imatrix", counts[None], "imatrix")


def arrays() -> None:
    names = [name for name in REQUESTS for _ in range(sum(REQUESTS[name]))]
    found = [token(name, position) for name in REQUESTS for position in range(sum(REQUESTS[name]))]
    path = folder("arrays/npz")
    np.savez(
        path / "routes.npz",
        expert_ids=np.concatenate(list(IDS.values())),
        expert_weights=np.concatenate(list(WEIGHTS.values())),
        request=np.array(names),
        position=np.array([one["position"] for one in found]),
        token=np.array([FIRST_ID[name] + one["position"] for name, one in zip(names, found, strict=True)]),
        phase=np.array([one["phase"] for one in found]),
        layer_ids=np.array(LAYERS),
        num_experts=np.array(EXPERTS),
        model=np.array("tiny"),
    )
    expect("arrays/npz", {name: tokens_of(name, ids=True) for name in REQUESTS}, "tiny", weights=True)
    path = folder("arrays/npy")
    np.save(path / "a.npy", hidden("a"))
    expect("arrays/npy", {"a": tokens_of("a", phases=False)}, "npy")
    short_sets()


def short_sets() -> None:
    """Four places a set: two experts of which every fourth token lacks one in the last layer, one that computes nothing
    (6 or 7), and -1; behind them rows of padding."""
    path, requests = folder("arrays/short"), {}
    for name, ids in IDS.items():
        tokens = tokens_of(name, phases=False)
        wide = np.full((*ids.shape[:2], 4), -1)
        wide[..., 1], wide[..., 3] = ids[..., 0], ids[..., 1]
        wide[..., 0] = 6 + np.arange(len(ids))[:, None] % 2
        for one in tokens[3::4]:
            wide[one["position"], -1, 3] = -1
            one["ids"] = [one["ids"][0], [one["ids"][1][0], -1]]
        padding = np.broadcast_to(np.arange(4), (20 - len(ids), len(LAYERS), 4))
        rows = np.concatenate([wide, padding])
        np.savez(path / f"{name}.npz", expert_ids=rows, num_experts=EXPERTS, layer_ids=np.array(LAYERS))
        requests[name] = tokens
    left_out = {"padding rows": 20 * len(IDS) - sum(map(len, IDS.values()))}
    expect("arrays/short", requests, "short", left_out=left_out)


def parquet() -> None:
    import pyarrow
    from pyarrow import parquet as files

    found = [(name, token(name, position)) for name in REQUESTS for position in range(sum(REQUESTS[name]))]
    table = pyarrow.table(
        {
            "request": [name for name, _ in found],
            "domain": ["words" for _ in found],
            "position": [one["position"] for _, one in found],
            "phase": [one["phase"] for _, one in found],
            "token": [FIRST_ID[name] + one["position"] for name, one in found],
            "expert_ids": [one["ids"] for _, one in found],
            "expert_weights": np.concatenate(list(WEIGHTS.values())).tolist(),
        }
    ).replace_schema_metadata({"layer_ids": "1-2", "num_experts": str(EXPERTS), "model": "tiny"})
    files.write_table(table, folder("parquet/table") / "routes.parquet")
    expect("parquet/table", {name: tokens_of(name, ids=True) for name in REQUESTS}, "tiny", weights=True)
