"""Targets: checkpoints, and what `placement apply` wrote."""

from __future__ import annotations

import json

import numpy as np
from fuzz_base import Seeds, Target, folder, refusing
from safetensors.numpy import save

from placement.runtime.checkpoint import apply_map, verify_applied
from placement.runtime.checkpoint.layouts import find_experts
from placement.runtime.checkpoint.source import open_checkpoint
from placement.testing.exporters import small_placement


def checkpoint_file() -> Target:
    """The only file of a checkpoint: its header, how experts are named in it, and a map applied to it."""

    def run(data: bytes) -> None:
        with folder() as base, refusing():
            (base / "in").mkdir()
            (base / "in" / "model.safetensors").write_bytes(data)
            checkpoint = open_checkpoint(base / "in")
            find_experts(checkpoint.files, checkpoint.folder)
            apply_map(base / "in", small_placement(layer_ids=(1, 2)), base / "out")

    def seeds() -> Seeds:
        from checkpoints import write_checkpoint

        with folder() as base:
            layouts = ("mixtral", "deepseek-fp8", "gpt-oss")
            return {
                layout: (write_checkpoint(base / layout, layout) / "model.safetensors").read_bytes()
                for layout in layouts
            }

    return Target(run=run, seeds=seeds, kind="safetensors")


def checkpoint_index() -> Target:
    def run(data: bytes) -> None:
        with folder() as base, refusing():
            (base / "model.safetensors.index.json").write_bytes(data)
            (base / "a.safetensors").write_bytes(save({"x": np.zeros(2, dtype=np.float32)}))
            open_checkpoint(base)

    names = {"metadata": {}, "weight_map": {"x": "a.safetensors"}}
    return Target(run=run, seeds=lambda: {"sound": json.dumps(names).encode()}, kind="json")


_APPLIED: dict[str, bytes] = {}


def _applied_files() -> dict[str, bytes]:
    """A folder that `placement apply` wrote, made once."""
    if not _APPLIED:
        from checkpoints import write_checkpoint

        with folder() as base:
            write_checkpoint(base / "in", "gpt-oss")
            apply_map(base / "in", small_placement(layer_ids=(1, 2)), base / "out")
            _APPLIED.update({one.name: one.read_bytes() for one in (base / "out").iterdir()})
    return _APPLIED


def applied_file(part: str) -> Target:
    def run(data: bytes) -> None:
        with folder() as base, refusing():
            for name, content in _applied_files().items():
                (base / name).write_bytes(data if name == part else content)
            verify_applied(base)

    return Target(run=run, seeds=lambda: {"sound": _applied_files()[part]}, kind="json")
