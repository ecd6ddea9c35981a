"""The way of rows between ranks by its name, the same on all ranks, or the first that can be used."""

from __future__ import annotations

import logging

import torch

from placement.errors import OptionError
from placement.runtime.transport import AUTO, TRANSPORTS
from placement.runtime.transport.base import Mesh
from placement.runtime.wire import Wire

log = logging.getLogger("placement")


def with_transport(
    mesh: Mesh, transport: str, *, wire: Wire, max_tokens: int, device: torch.device | str = "cuda"
) -> Mesh:
    """The mesh on which rows go by a transport. Every rank calls the function, with the same arguments.

    Args:
        mesh: This rank's groups (`torch_mesh`).
        transport: `torch`: torch.distributed; `symm-mem`: torch's symmetric memory on NVSHMEM, whose counts of rows
            stay on the GPU (not run on a GPU); `auto`: the first that all ranks can use, which the log tells.
        wire: How tokens travel, for the size of buffers.
        max_tokens: Most tokens that a rank brings.
        device: Where the tokens are.

    Raises:
        OptionError: There is no such transport, or a rank cannot use it.
    """
    if max_tokens < 1:
        raise OptionError(f"max_tokens={max_tokens} must be at least 1")
    device, names = torch.device(device), list(TRANSPORTS) if transport == AUTO else [transport]
    for name in names:
        one = TRANSPORTS.make(name)
        why = one.refusal(mesh, device)
        refusing = _ranks_that(mesh, bool(why), device)
        if not refusing:
            if transport == AUTO:
                log.info("rows go by transport %s", name)
            return one.mesh(mesh, wire, max_tokens, device)
        why = why or f"rank {', '.join(map(str, refusing))} cannot, and says why"
        if transport != AUTO:
            raise OptionError(
                f"transport={transport!r} cannot be used: {why}; or choose transport='torch', or {AUTO!r} for the "
                "first that can be used"
            )
        log.warning("transport %s cannot be used: %s", name, why)
    raise OptionError(f"none of the transports {', '.join(names)} can be used; the log says why")


def _ranks_that(mesh: Mesh, refuse: bool, device: torch.device) -> list[int]:
    world = mesh.world
    told = world.host(world.all_to_all(torch.full((len(world.ranks), 1), int(refuse), device=device)))
    return [rank for rank, (flag,) in zip(world.ranks, told, strict=True) if flag]
