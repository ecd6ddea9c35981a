"""A Hugging Face checkpoint cut into one file a rank, in the order of a map's slots, and put together again."""

from __future__ import annotations

from placement.runtime.checkpoint.apply import Applied, apply_map
from placement.runtime.checkpoint.layouts import LAYOUTS
from placement.runtime.checkpoint.manifest import CheckpointManifest, read_manifest
from placement.runtime.checkpoint.restore import restore_checkpoint, verify_applied

__all__ = [
    "LAYOUTS",
    "Applied",
    "CheckpointManifest",
    "apply_map",
    "read_manifest",
    "restore_checkpoint",
    "verify_applied",
]
