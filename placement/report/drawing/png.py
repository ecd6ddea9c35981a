"""A heatmap as a small PNG: one pixel a value, colours that suit a light and a dark page.

Deviation from 1 is opacity: blue below, orange above, clear at 1. So the page's own background is the neutral colour.
"""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
import numpy.typing as npt

BLUE, ORANGE = (0, 114, 178), (213, 94, 0)
HALF = 127


def heatmap_uri(ratio_YX: npt.NDArray[np.float64], reach: float) -> str:
    """`data:` address of the image of `ratio_YX`, first row on top; full colour at 1 - `reach` and 1 + `reach`."""
    level = np.clip((ratio_YX - 1) / reach, -1, 1)
    index_YX = (np.rint(level * HALF) + HALF).astype(np.uint8)
    return "data:image/png;base64," + base64.b64encode(_png(index_YX)).decode()


def _png(index_YX: npt.NDArray[np.uint8]) -> bytes:
    """An indexed PNG with the palette of this module."""
    height, width = index_YX.shape
    steps = range(-HALF, HALF + 1)
    palette = bytes(part for step in steps for part in (BLUE if step < 0 else ORANGE))
    opacity = bytes(round(255 * abs(step) / HALF) for step in steps)
    rows = np.zeros((height, width + 1), dtype=np.uint8)
    rows[:, 1:] = index_YX
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(kind, data)
        for kind, data in (
            (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            (b"PLTE", palette),
            (b"tRNS", opacity),
            (b"IDAT", zlib.compress(rows.tobytes(), 9)),
            (b"IEND", b""),
        )
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
