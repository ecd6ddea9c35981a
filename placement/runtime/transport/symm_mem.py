"""Rows by torch's symmetric memory on NVSHMEM: how many go to whom stays on the GPU. Not run on a GPU.

Written to the schema of `torch.ops.symm_mem.all_to_all_vdev_2d` and what torch's `nvshmem_extension.cu` says of it:
each rank pulls its rows out of the others' buffers, after a barrier at the start and none at the end. So buffers that
others read or write, rows that go and counts that come, are taken in turns of two: who is at the next exchange has
finished the one before. With one part for each member rows come in the order of members, without gaps.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from placement.errors import OptionError
from placement.runtime.transport.base import Group, Mesh, RowMover
from placement.runtime.wire import Wire

BACKEND = "NVSHMEM"
DEVICES = ("cuda",)
MOST_RANKS = 32  # of a group: torch adds up counts within a warp
ARGUMENTS = ["input", "out", "in_splits", "out_splits_offsets", "group_name", "major_align"]


class SymmetricMemory:
    """See `RowTransport`."""

    def refusal(self, mesh: Mesh, device: torch.device) -> str:
        """Why rows cannot go this way here, and what would mend it; empty if they can."""
        if device.type not in DEVICES:
            return (
                f"rows are on {device.type!r}, and NVSHMEM moves memory of GPUs; give device='cuda' where there is one"
            )
        schema = getattr(getattr(torch.ops.symm_mem, "all_to_all_vdev_2d", None), "default", None)
        if schema is None or [one.name for one in schema._schema.arguments] != ARGUMENTS:
            return (
                f"torch {torch.__version__} has no all_to_all_vdev_2d of the arguments {', '.join(ARGUMENTS)}; install "
                "torch 2.13 for CUDA"
            )
        if not _torch().is_nvshmem_available():
            return (
                f"torch {torch.__version__} finds no NVSHMEM; install a torch for CUDA on Linux, with the package "
                "nvidia-nvshmem of the same CUDA"
            )
        if len(mesh.world.ranks) > MOST_RANKS:
            return f"the mesh has {len(mesh.world.ranks)} ranks, and the operation takes {MOST_RANKS}; use fewer"
        return ""

    def mesh(self, mesh: Mesh, wire: Wire, max_tokens: int, device: torch.device) -> Mesh:
        """The same groups, whose rows go this way; headers and all else go as they did. All ranks call it together."""
        if _torch().get_backend(device) != BACKEND:
            try:
                _torch().set_backend(BACKEND)
            except RuntimeError as error:
                raise OptionError(
                    f"symmetric memory is in use on {_torch().get_backend(device)}: {str(error).splitlines()[0]}; make "
                    f"this mesh first, or call torch's set_backend({BACKEND!r}) before the first use"
                ) from None

        def by_device(group: Group, tokens: int) -> Group:
            return MovedGroup(group, SymmetricRows(group, wire, tokens, device))

        return replace(
            mesh,
            world=by_device(mesh.world, max_tokens),
            across=by_device(mesh.across, max_tokens),
            within=by_device(mesh.within, max_tokens * mesh.num_nodes),
        )


class SymmetricRows:
    """See `RowMover`. A member brings at most `tokens` rows, each of which goes to a member at most once."""

    def __init__(self, group: Group, wire: Wire, tokens: int, device: torch.device) -> None:
        size = len(group.ranks)
        self._name, self._tokens, self._most_rows = group.name, tokens, size * tokens
        self._row_bytes = {False: wire.row_bytes, True: wire.return_bytes}
        room = self._most_rows * max(self._row_bytes.values())
        self._given = [_symmetric(self._name, (room,), torch.uint8, device) for _ in range(2)]
        self._came = _symmetric(self._name, (room,), torch.uint8, device)
        self._given_X = _symmetric(self._name, (size,), torch.int64, device)
        self._came_2X = [_symmetric(self._name, (2, size), torch.int64, device) for _ in range(2)]
        self._turn = 0

    def room(self, num_rows: int, row_bytes: int, *, back: bool = False) -> Tensor:
        """See `RowMover`."""
        if row_bytes != self._row_bytes[back] or num_rows > self._most_rows:
            raise OptionError(
                f"{num_rows} rows of {row_bytes} bytes do not fit into symmetric memory, which was made for rows of "
                f"{self._row_bytes[back]} bytes and max_tokens={self._tokens} in this group; give with_transport the "
                "size, type and top-k of the tokens, and as many as a rank may bring"
            )
        return self._given[self._turn][: num_rows * row_bytes].view(num_rows, row_bytes)

    def move(self, row_bytes: int, counts_X: Tensor) -> tuple[Tensor, Tensor]:
        """See `RowMover`."""
        size, shape = self._most_rows * row_bytes, (self._most_rows, row_bytes)
        given, came = (room[:size].view(shape) for room in (self._given[self._turn], self._came))
        came_2X = self._came_2X[self._turn]
        self._turn = 1 - self._turn
        self._given_X.copy_(counts_X)
        torch.ops.symm_mem.all_to_all_vdev_2d(given, came, self._given_X, came_2X, self._name)
        return came, came_2X[0].clone()


class MovedGroup:
    """A group whose rows go by a mover; headers, and rows whose counts are on the host, go by the group itself."""

    def __init__(self, group: Group, mover: SymmetricRows) -> None:
        self.rank, self.ranks, self.name = group.rank, group.ranks, group.name
        self.mover: RowMover | None = mover
        self.all_to_all, self.start, self.host, self.decide = group.all_to_all, group.start, group.host, group.decide
        self.no_graph = group.no_graph


def _symmetric(group: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory that all members of a group have alike, and know of one another."""
    tensor: Tensor = _torch().empty(*shape, dtype=dtype, device=device)
    _torch().rendezvous(tensor, group)
    return tensor


def _torch() -> Any:
    """What torch calls experimental; imported when a mesh is made."""
    import torch.distributed._symmetric_memory as symmetric_memory

    return symmetric_memory
