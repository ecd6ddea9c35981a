"""Writing safetensors files array by array: the library's `save` holds a copy of all of them in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.support.atomic_files import open_atomic

DTYPES = {"u8": "U64", "u4": "U32", "i4": "I32", "f2": "F16", "u2": "U16", "u1": "U8"}  # in the order of the file
ALIGNMENT = 8


def write_tensors(
    path: str | Path, arrays: dict[str, npt.NDArray[Any]], metadata: dict[str, str] | None = None
) -> None:
    """Write the bytes of `safetensors.numpy.save`, whole or not at all, for dtypes of DTYPES. Raises OutputError."""
    order = list(DTYPES)
    names = sorted(arrays, key=lambda name: (order.index(arrays[name].dtype.str[1:]), name))
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name in names:
        array = arrays[name]
        offsets = [end, end + array.nbytes]
        header[name] = {"dtype": DTYPES[array.dtype.str[1:]], "shape": list(array.shape), "data_offsets": offsets}
        end = offsets[1]
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with open_atomic(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            little = np.ascontiguousarray(arrays[name], dtype=arrays[name].dtype.newbyteorder("<"))
            file.write(little.reshape(-1).view(np.uint8).data)
