"""Memory of this machine, and what cannot fit in it."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from placement.core.model import Model
from placement.errors import InputError

CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
GIB = 1 << 30


def machine_bytes() -> int:
    """Memory of the machine, or of the container that this process runs in."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in map(Path, CONTAINER_LIMITS):
        try:
            sizes.append(int(path.read_text()))
        except (OSError, ValueError):
            continue  # there is none, or it is "max"
    return min(sizes)


def give_back_freed() -> None:
    """Give the system the memory that was freed between what is still in use, where the C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def check_fits_memory(model: Model, needed_bytes: int) -> None:
    """Raise InputError where counting a model's pairs of experts takes more than all memory.

    Asked before it is tried: systems promise memory that they do not have, and end whoever uses it.
    """
    if needed_bytes > machine_bytes():
        raise InputError(
            f"{model.num_layers} layers of {model.num_experts:,} experts are too many: counting their pairs takes "
            f"{needed_bytes / GIB:,.0f} GiB of memory, and {machine_bytes() / GIB:,.0f} are there; check the number of "
            f"experts, or use a larger machine"
        )
