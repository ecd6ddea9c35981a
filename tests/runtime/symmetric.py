"""A stand-in for torch's symmetric memory on NVSHMEM, behind torch's own schema of the operation, for lockstep.

`all_to_all_vdev_2d` does on CPUs what torch's `nvshmem_extension.cu` says: parts for each expert of each rank, `ne` a
rank, become on their rank a block for each expert, in which ranks follow one another; a block starts at a multiple of
`major_align` and an empty one takes `major_align`. What the real operation needs, or leaves to its caller, is asserted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hot_path import parked
from moe import torch

from placement.runtime import Mesh
from placement.runtime.transport import symm_mem

Tensor = torch.Tensor
LIBRARY = torch.library.Library("symm_mem", "IMPL")
BLANK = 0xA5  # of memory that nobody wrote to


class Stand:
    """One world of ranks: symmetric memory by its address, the groups of each thread, what others may still read."""

    def __init__(self) -> None:
        self.available, self.backend = True, "CUDA"
        self.moves = 0
        self._shapes: dict[int, tuple[tuple[int, ...], str]] = {}
        self._keep: list[Tensor] = []
        self._here = threading.local()

    def enter(self, mesh: Mesh) -> None:
        """This thread is a rank of the mesh."""
        self._here.groups = {one.name: one for one in (mesh.world, mesh.across, mesh.within)}
        self._here.given = {}

    def is_nvshmem_available(self) -> bool:
        return self.available

    def get_backend(self, _: Any) -> str:
        return self.backend

    def set_backend(self, name: str) -> None:
        if self._shapes:
            raise RuntimeError("the backend cannot be changed\nException raised from set_backend")
        self.backend = name

    def empty(self, *shape: int, dtype: Any, device: Any) -> Tensor:
        assert self.backend == "NVSHMEM"
        tensor = torch.empty(shape, dtype=dtype, device=device)
        tensor.view(torch.uint8).fill_(BLANK)
        self._keep.append(tensor)
        return tensor

    def rendezvous(self, tensor: Tensor, name: str) -> None:
        """All members come with the same shape."""
        group, shape = self._here.groups[name], tuple(tensor.shape)
        assert group._world.swap(group.ranks, group._me, shape) == [shape] * len(group.ranks)
        self._shapes[tensor.data_ptr()] = shape, name

    def all_to_all_vdev_2d(
        self, input: Tensor, out: Tensor, in_splits: Tensor, out_splits_offsets: Tensor, name: str, align: int | None
    ) -> None:
        group = self._here.groups[name]
        size, me = len(group.ranks), group.rank
        for one in (input, out, in_splits, out_splits_offsets):
            assert one.is_contiguous() and self._shapes[one.data_ptr()][1] == name
        assert in_splits.dtype == out_splits_offsets.dtype == torch.int64
        assert input.dtype == out.dtype and input.stride(0) == out.stride(0)
        assert out_splits_offsets.shape == (2, len(in_splits)) and len(in_splits) % size == 0 and size <= 32
        assert int(in_splits.min()) >= 0 and int(in_splits.sum()) <= len(input)
        before = self._here.given.get(name)  # others pull until this rank is at its next exchange
        if before is not None:
            assert torch.equal(before[0], before[1]), "rows were written over while others may still read them"
            assert before[2] != out_splits_offsets.data_ptr(), "others write counts that this rank may not have read"
        told = group._world.swap(group.ranks, group._me, (input, in_splits.clone()))
        aligned, place, ne = 1 if align is None else align, 0, len(in_splits) // size
        out.view(torch.uint8).fill_(BLANK)
        for e in range(ne):
            first = place
            for member, (rows, splits) in enumerate(told):
                number, skipped = int(splits[me * ne + e]), int(splits[: me * ne + e].sum())
                assert place + number <= len(out), "rows beyond the end of the buffer"
                out[place : place + number] = rows[skipped : skipped + number]
                out_splits_offsets[:, e * size + member] = torch.tensor([number, place])
                place += number
            place = first + max(-(-(place - first) // aligned) * aligned, aligned)
        group._world.swap(group.ranks, group._me, None)
        self._here.given[name] = input, input.clone(), out_splits_offsets.data_ptr()
        self.moves += 1


_now: list[Stand] = []


def _call(input: Any, out: Any, in_splits: Any, counts: Any, group_name: str, major_align: Any = None) -> None:
    with parked():
        _now[-1].all_to_all_vdev_2d(input, out, in_splits, counts, group_name, major_align)


LIBRARY.impl("all_to_all_vdev_2d", _call, "CPU")


@pytest.fixture
def symmetric(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    """Symmetric memory that CPUs have."""
    stand = Stand()
    monkeypatch.setattr(symm_mem, "_torch", lambda: stand)
    monkeypatch.setattr(symm_mem, "DEVICES", ("cpu",))
    _now.append(stand)
    yield stand
    _now.clear()


def inside(stand: Stand, program: Callable[[Mesh], Any]) -> Callable[[Mesh], Any]:
    """The program, in a thread that the stand-in knows as the rank."""

    def run(mesh: Mesh) -> Any:
        stand.enter(mesh)
        return program(mesh)

    return run
