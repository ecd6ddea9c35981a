"""What vLLM's Triton kernel of the replica rule asks of `triton` and `triton.language`, on torch's tensors.

Triton is on no machine without a GPU; so the kernel's own Python runs, as one program that takes the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

triton = SimpleNamespace(jit=lambda function: function)


@dataclass(frozen=True)
class Pointer:
    """Into a tensor; a pointer plus offsets points to these places."""

    value: Any
    at: Any = 0

    def __add__(self, offsets: Any) -> Pointer:
        return Pointer(self.value, offsets)


def _load(pointer: Pointer, mask: Any = None, other: int = 0) -> Any:
    found = pointer.value[pointer.at]
    return found if mask is None else torch.where(mask, found, other)


def _store(pointer: Pointer, value: Any, mask: Any) -> None:
    pointer.value[pointer.at[mask]] = value[mask].to(pointer.value.dtype)


def _atomic_add(pointer: Pointer, value: int, mask: Any) -> None:
    pointer.value.index_add_(0, pointer.at[mask], torch.full_like(pointer.at[mask], value))


language = SimpleNamespace(
    constexpr=int,
    int64=torch.int64,
    program_id=lambda _: 0,
    arange=torch.arange,
    where=torch.where,
    maximum=lambda value, least: value.clamp(min=least),
    load=_load,
    store=_store,
    atomic_add=_atomic_add,
)
