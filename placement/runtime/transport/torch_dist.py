"""The transport on torch.distributed: NCCL between GPUs, gloo between CPUs (and for GPUs that share a device)."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from placement.errors import OptionError, RankError
from placement.runtime.transport.base import Mesh, RowMover
from placement.runtime.transport.roll_call import RollCall
from placement.runtime.wire import Wire

TIMEOUT_S = 60.0
_meshes = itertools.count()


def torch_mesh(
    num_nodes: int, gpus_per_node: int, *, timeout_s: float = TIMEOUT_S, device: str = "cpu", check: bool = False
) -> Mesh:
    """The groups of this process, after `init_process_group`; ranks are numbered node by node, as torchrun does.

    Args:
        timeout_s: A rank that has not come to an exchange for so long is named in a RankError on the others.
        device: Type of the tensors: `cpu` or `cuda`.
        check: Before every exchange ranks compare its sizes, with one more small exchange: finds a rank that dispatches
            where others combine, which gloo would answer with wrong rows or the end of the process.
    """
    if not dist.is_initialized():
        raise OptionError("torch.distributed has no process group; call torch.distributed.init_process_group first")
    if dist.get_world_size() != num_nodes * gpus_per_node:
        raise OptionError(
            f"{num_nodes} nodes x {gpus_per_node} GPUs need {num_nodes * gpus_per_node} processes; there are "
            f"{dist.get_world_size()}"
        )
    names = ("node", "local")
    device_mesh = init_device_mesh(device, (num_nodes, gpus_per_node), mesh_dim_names=names)
    return mesh_of(device_mesh, timeout_s=timeout_s, check=check)


def mesh_of(device_mesh: DeviceMesh, *, timeout_s: float = TIMEOUT_S, check: bool = False) -> Mesh:
    """The groups of this process, from a `(node, local)` DeviceMesh over all processes.

    Every process must call this function. `timeout_s` and `check` are those of `torch_mesh`.
    """
    if device_mesh.ndim != 2 or device_mesh.size() != dist.get_world_size():
        raise OptionError(
            f"the DeviceMesh has shape {tuple(device_mesh.mesh.shape)}; (node, local) over all "
            f"{dist.get_world_size()} processes is needed"
        )
    if device_mesh.mesh.flatten().tolist() != list(range(dist.get_world_size())):
        raise OptionError("the DeviceMesh must number its ranks node by node: 0, 1, 2, ...")
    roll_call = RollCall(_store(), dist.get_rank(), dist.get_world_size(), next(_meshes), timeout_s / 2)
    groups = [dist.group.WORLD, device_mesh.get_group(0), device_mesh.get_group(1)]
    if device_mesh.device_type == "cpu" or "nccl" not in str(dist.get_backend_config()):
        groups = [_own_group(group, timeout_s / 2) for group in groups]
    world, across, within = (TorchGroup(group, roll_call, timeout_s / 2, check) for group in groups)
    return Mesh(world=world, across=across, within=within)


def _store() -> Any:
    """The store of the default process group, for which torch has no public name. Raises OptionError."""
    find = getattr(dist.distributed_c10d, "_get_default_store", None)
    if find is None:
        raise OptionError(
            f"torch {torch.__version__} does not give the store of its process group; install torch 2.8 to 2.13"
        )
    return find()


def _own_group(group: Any, timeout_s: float) -> Any:
    """The same ranks with a time limit of our own: the user's groups keep theirs. (NCCL's would end the process.)"""
    ranks, limit = dist.get_process_group_ranks(group), timedelta(seconds=timeout_s)
    return dist.new_group(ranks, timeout=limit, backend="gloo", use_local_synchronization=True)


class TorchDistributed:
    """See `RowTransport`: a mesh as it is."""

    def refusal(self, mesh: Mesh, device: torch.device) -> str:
        return ""

    def mesh(self, mesh: Mesh, wire: Wire, max_tokens: int, device: torch.device) -> Mesh:
        return mesh


class TorchGroup:
    """See `Group`. `timeout_s` holds for one exchange; the roll call that follows may take as long again."""

    mover: RowMover | None = None

    def __init__(self, group: Any, roll_call: RollCall, timeout_s: float, check: bool) -> None:
        self._group, self._roll_call, self._timeout_s, self._check = group, roll_call, timeout_s, check
        self.rank, self.name = dist.get_rank(group), str(group.group_name)
        self.ranks = tuple(dist.get_process_group_ranks(group))

    def all_to_all(
        self,
        send: Tensor,
        send_rows: list[int] | None = None,
        recv_rows: list[int] | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        rows = len(send) if recv_rows is None else sum(recv_rows)
        recv = send.new_empty((rows, *send.shape[1:])) if out is None else out
        if self._check:
            self._compare(send, send_rows, recv_rows)
        with self._named():
            dist.all_to_all_single(recv, send.contiguous(), recv_rows, send_rows, group=self._group)
        return recv

    def start(
        self, send: Tensor, out: Tensor, send_rows: list[int] | None = None, recv_rows: list[int] | None = None
    ) -> Callable[[], None]:
        if self._check:
            self._compare(send, send_rows, recv_rows)
        with self._named():
            work = dist.all_to_all_single(
                out, send.contiguous(), recv_rows, send_rows, group=self._group, async_op=True
            )

        def wait() -> None:
            with self._named():
                work.wait()

        return wait

    @contextmanager
    def _named(self) -> Iterator[None]:
        """What fails inside is told with the rank that is missing, without the stack of C++ that torch's error has."""
        try:
            yield
        except RuntimeError as error:
            raise self._roll_call.error(self.ranks, str(error)) from None

    def _compare(self, send: Tensor, send_rows: list[int] | None, recv_rows: list[int] | None) -> None:
        """Raise RankError unless every member sends what this rank expects of it."""
        size = len(self.ranks)
        width = send[:1].numel() * send.element_size() if len(send) else send.new_empty((1, *send.shape[1:])).nbytes
        even = [len(send) // size] * size
        mine = torch.tensor([[rows, width] for rows in send_rows or even], device=send.device)
        theirs = torch.empty_like(mine)
        with self._named():
            dist.all_to_all_single(theirs, mine, group=self._group)
        wanted = [[rows, width] for rows in recv_rows or even]
        for rank, got, want in zip(self.ranks, self.host(theirs), wanted, strict=True):
            if got != want:
                raise RankError(
                    f"rank {rank} sends {got[0]} rows of {got[1]} bytes where {want[0]} of {want[1]} are due: it is at "
                    "another exchange; every rank must make the same calls in the same order",
                    (rank,),
                )

    def host(self, tensor: Tensor) -> list[list[int]]:
        if not tensor.is_cuda:
            return tensor.tolist()
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        copy.copy_(tensor, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        deadline = time.monotonic() + self._timeout_s
        while not done.query():  # an exchange on NCCL fails by never ending
            if time.monotonic() > deadline:
                raise self._roll_call.error(self.ranks, f"nothing came in {self._timeout_s:g} s")
        return copy.tolist()

    def no_graph(self, device: torch.device) -> str | None:
        if self._check:
            return "check=True compares sizes on the host"
        if device.type == "cuda" and str(dist.get_backend(self._group)) != "nccl":
            return f"{dist.get_backend(self._group)} takes rows through the host"
        return None

    def decide(self, proposal: str) -> str:
        return self._roll_call.decide(self.ranks, proposal)
