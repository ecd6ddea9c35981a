"""The header of a safetensors file of which only pieces can be read."""

from __future__ import annotations

import json
from math import prod
from typing import Any

from placement.traces.storage.stored_path import StoredPath

MOST_BYTES = 1 << 24
FIRST_BYTES = 4096  # a header of ours is shorter
SIZES = {"U8": 1, "U16": 2, "I32": 4, "F16": 2}


def read_stored_header(path: StoredPath) -> tuple[dict[str, Any], dict[str, str], int]:
    """Each tensor's entry (dtype, shape, data_offsets), the metadata, and the byte at which the data begin.

    Checked is that every tensor of a dtype of ours lies in the file with the bytes that its shape asks for. Raises
    OSError, and ValueError of a file that is none.
    """
    start = path.read_range(0, FIRST_BYTES)
    size = int.from_bytes(start[:8], "little")
    if len(start) < 8 or size > MOST_BYTES:
        raise ValueError(f"a header of {size} bytes")
    header = start[8 : 8 + size] if 8 + size <= len(start) else path.read_range(8, 8 + size)
    entries = json.loads(header) if len(header) == size else None
    if not isinstance(entries, dict):
        raise ValueError("no header")
    metadata = entries.pop("__metadata__", {})
    data_bytes = path.size() - 8 - size
    try:
        for name, entry in entries.items():
            begin, end = entry["data_offsets"]
            wanted = prod(entry["shape"]) * SIZES.get(entry["dtype"], 0)
            if not 0 <= begin <= end <= data_bytes or (wanted and end - begin != wanted) or min(entry["shape"]) < 0:
                raise ValueError(f"tensor {name!r} does not lie in the file")
    except (KeyError, TypeError) as error:
        raise ValueError(f"a broken header: {error}") from None
    return entries, metadata if isinstance(metadata, dict) else {}, 8 + size
