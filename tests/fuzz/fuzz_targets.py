"""What is fuzzed: for everything that reads what others wrote, a function of bytes, and sound bytes to start from.

A target returns for sound input and for input that is refused in words of ours; whatever else it raises is a finding.
`TARGETS` is the table; a new reader needs a line.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fuzz_base import Target
from fuzz_checkpoints import applied_file, checkpoint_file, checkpoint_index
from fuzz_maps import cluster_file, engine_map, grouping_file, placement_file
from fuzz_names import registry
from fuzz_recordings import logical_count, recorded
from fuzz_service import archive, one_call, request_body
from fuzz_traces import counted_file, counts_file, pair_file, trace_file


def _table() -> dict[str, Callable[[], Target]]:
    dump = "expert_distribution_recorder_1764000000.5"
    table: dict[str, Callable[[], Target]] = {
        f"read-{case.replace('/', '-')}-{Path(file).suffix[1:]}": lambda case=case, file=file: recorded(case, file)
        for case, file in (
            ("sglang/per-token", f"{dump}_0.pt"),
            ("sglang/speculative", f"{dump}_0.pt"),
            ("sglang/per-pass", f"{dump}_0.pt"),
            ("sglang/stat", f"{dump}.pt"),
            ("sglang-responses/generate", "responses.jsonl"),
            ("sglang-responses/chat", "responses.json"),
            ("sglang-responses/typed", "responses.jsonl"),
            ("vllm/responses", "responses.jsonl"),
            ("vllm/prompts-apart", "responses.jsonl"),
            ("vllm/payloads", "responses.jsonl"),
            ("vllm/generate", "responses.jsonl"),
            ("vllm/arrays", "a.npy"),
            ("routing-log/layer-major", "routes.jsonl"),
            ("megatron/training", "router_trace_rank0.jsonl"),
            ("tensorrt-llm/counts", "meta_info.json"),
            ("tensorrt-llm/counts", "rank0.safetensors"),
            ("tensorrt-llm/raw", "rank0_raw.safetensors"),
            ("llama-cpp/imatrix", "imatrix.gguf"),
            ("arrays/npz", "routes.npz"),
            ("arrays/npy", "a.npy"),
            ("arrays/short", "c.npz"),
            ("parquet/table", "routes.parquet"),
        )
    }
    for name, suffix in (
        ("sglang", ".json"),
        ("sglang", ".pt"),
        ("vllm", ".json"),
        ("vllm-ascend", ".json"),
        ("vllm-hygon", ".json"),
        ("tensorrt-llm", ".yaml"),
        ("omni-infer", ".npy"),
        ("deepseek-eplb", ".safetensors"),
        ("deepseek-eplb", ".npz"),
    ):
        table[f"map-{name}-{suffix[1:]}"] = lambda name=name, suffix=suffix: engine_map(name, suffix)
    return table | {
        "read-sglang-logical-count-json": logical_count,
        "trace-manifest": lambda: trace_file("trace.json"),
        "trace-shard": lambda: trace_file("shard-00000.safetensors"),
        "trace-shard-short": lambda: trace_file("shard-00000.safetensors", short=True),
        "counts-npy": lambda: counts_file(".npy"),
        "counts-npz": lambda: counts_file(".npz"),
        "pair-file": pair_file,
        "counted-manifest": lambda: counted_file("counts.json"),
        "counted-arrays": lambda: counted_file("counts.safetensors"),
        "counted-arrays-short": lambda: counted_file("counts.safetensors", short=True),
        "placement": placement_file,
        "grouping": grouping_file,
        "cluster": cluster_file,
        "checkpoint": checkpoint_file,
        "checkpoint-index": checkpoint_index,
        "checkpoint-manifest": lambda: applied_file("manifest.json"),
        "checkpoint-sources": lambda: applied_file("sources.json"),
        "body-placements": lambda: request_body("/placements"),
        "body-evaluations": lambda: request_body("/evaluations"),
        "body-route": lambda: request_body("/route"),
        "body-group": lambda: request_body("/group"),
        "body-one-call": one_call,
        "registry": registry,
        "archive": archive,
    }


TARGETS = _table()
