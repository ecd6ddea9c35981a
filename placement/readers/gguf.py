"""The little of GGUF (versions 2 and 3) that an imatrix needs: names, shapes and places of its tensors."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import IO

import numpy as np
import numpy.typing as npt

MAGIC = b"GGUF"
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value of each type
TEXT, ARRAY, FLOAT32 = 8, 9, 0
LONGEST = 1 << 20  # of a name or of a number of things


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """`shape` has the inner dimension first, as in the file."""

    shape: tuple[int, ...]
    kind: int
    offset_bytes: int


def gguf_tensors(file: IO[bytes]) -> dict[str, GgufTensor]:
    """Tensors by name. Raises ValueError on what is no sound GGUF."""
    if file.read(4) != MAGIC:
        raise ValueError("it does not begin with GGUF")
    version, num_tensors, num_keys = _numbers(file, "<IQQ")
    if version not in (2, 3):
        raise ValueError(f"it is of GGUF version {version}; 2 and 3 are read")
    if max(num_tensors, num_keys) > LONGEST:
        raise ValueError(f"its header says {num_tensors} tensors and {num_keys} keys")
    keys = {_text(file): _value(file, _numbers(file, "<I")[0]) for _ in range(num_keys)}
    found: dict[str, GgufTensor] = {}
    for _ in range(num_tensors):
        name = _text(file)
        (dimensions,) = _numbers(file, "<I")
        if dimensions > 8:
            raise ValueError(f"tensor {name} has {dimensions} dimensions")
        shape = _numbers(file, f"<{dimensions}Q")
        kind, offset = _numbers(file, "<IQ")
        found[name] = GgufTensor(shape=shape, kind=kind, offset_bytes=offset)
    align = keys.get("general.alignment", 32)
    if not isinstance(align, int) or align < 1:
        raise ValueError(f"its alignment is {align!r}")
    start = -(-file.tell() // align) * align
    promised, there = sum(4 * math.prod(one.shape) for one in found.values() if one.kind == FLOAT32), file.seek(0, 2)
    if promised > there:
        raise ValueError(f"its header says {promised} bytes of tensors in a file of {there}")
    return {
        name: GgufTensor(shape=one.shape, kind=one.kind, offset_bytes=start + one.offset_bytes)
        for name, one in found.items()
    }


def gguf_values(file: IO[bytes], tensor: GgufTensor) -> npt.NDArray[np.float32]:
    """All values of a float32 tensor, flat. Raises ValueError."""
    count = math.prod(tensor.shape)
    if tensor.kind != FLOAT32 or count > LONGEST:
        raise ValueError(f"a tensor of type {tensor.kind} with {count} values; float32 is needed")
    file.seek(tensor.offset_bytes)
    data = file.read(4 * count)
    if len(data) < 4 * count:
        raise ValueError("truncated: a tensor is not all there")
    return np.frombuffer(data, dtype="<f4")


def _value(file: IO[bytes], kind: int) -> object:
    if kind == TEXT:
        return _text(file)
    if kind == ARRAY:
        inner, count = _numbers(file, "<IQ")
        if count > LONGEST:
            raise ValueError(f"an array of {count} values in its header")
        return [_value(file, inner) for _ in range(count)]
    if kind not in SIZES:
        raise ValueError(f"a value of unknown type {kind} in its header")
    data = _exactly(file, SIZES[kind])
    return int.from_bytes(data, "little") if kind in (0, 2, 4, 7, 10) else data


def _text(file: IO[bytes]) -> str:
    (size,) = _numbers(file, "<Q")
    if size > LONGEST:
        raise ValueError(f"a text of {size} bytes in its header")
    return _exactly(file, size).decode(errors="replace")


def _numbers(file: IO[bytes], form: str) -> tuple[int, ...]:
    return struct.unpack(form, _exactly(file, struct.calcsize(form)))


def _exactly(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise ValueError("truncated: its header is not all there")
    return data
