"""Tensors of a checkpoint that are read when they are asked for, and only the bytes that are wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from placement.errors import InputError
from placement.runtime.checkpoint.safetensors_file import SafetensorsFile

ByteSpan = tuple[SafetensorsFile, int, int]
_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


class LazyTensor:
    """What transformers takes for a tensor of a checkpoint: `tensor[...]` reads it, and nothing is kept.

    Args:
        read: Gives the tensor.
    """

    def __init__(self, read: Callable[[], Tensor]) -> None:
        self._read = read

    def __getitem__(self, index: Any) -> Tensor:
        return self._read()[index]


def torch_type(name: str, where: str) -> torch.dtype:
    """The type of number that safetensors calls `name`; `where` is for the message. Raises InputError."""
    found = getattr(torch, _TYPES.get(name, ""), None)
    if found is None:
        raise InputError(f"{where} has numbers of type {name}; of {', '.join(_TYPES)} this torch reads those it has")
    return found  # type: ignore[no-any-return]


def read_spans(spans: Sequence[ByteSpan], dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The bytes of all spans, one after another, as one tensor. Raises InputError for a file that cannot be read."""
    data = torch.empty(sum(end - begin for _, begin, end in spans), dtype=torch.uint8)
    view, at = data.numpy().data, 0
    for file, begin, end in spans:
        for chunk in file.chunks(begin, end):
            view[at : at + len(chunk)] = chunk
            at += len(chunk)
    return data.view(dtype).reshape(shape)
