"""Memory that one exchange after another uses: on a CPU new pages cost about as much as the copy into them."""

from __future__ import annotations

import threading

import numpy as np
import torch
from torch import Tensor


class Workspace(threading.local):
    """Buffers by name, each as large as the largest that was asked for. On a GPU torch's own cache does this.

    Each thread has its own, so that calls that take turns do not write to one another's.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def empty(self, name: str, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Uninitialised [rows, columns]; valid until the next call with that name."""
        if device.type != "cpu":
            return torch.empty((rows, columns), dtype=dtype, device=device)
        size = rows * columns * dtype.itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name] = torch.from_numpy(np.empty(max(size, 16), dtype=np.uint8))  # large pages
        return buffer[:size].view(dtype).view(rows, columns)
