"""The shape of the traces that are counted, and what a folder holds."""

from __future__ import annotations

from pathlib import Path

FILES = ("counts.json", "counts.safetensors")

SHAPE = {"tokens": 90, "requests": 9, "num_shards": 5, "num_experts": 6, "top_k": 2}


def content(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]
