"""Kernels for GPUs, where the package `triton` is there (it comes with torch for CUDA)."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec


@cache
def has_triton() -> bool:
    return find_spec("triton") is not None
