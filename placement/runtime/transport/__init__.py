"""How ranks reach one another, and the registry of what moves rows between them: one file and one line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from placement.support.registry import Registry

if TYPE_CHECKING:
    from placement.runtime.transport.base import RowTransport

AUTO = "auto"  # the first of these that can be used

TRANSPORTS: Registry[RowTransport] = Registry(
    "transport=",
    {
        "symm-mem": "placement.runtime.transport.symm_mem:SymmetricMemory",
        "torch": "placement.runtime.transport.torch_dist:TorchDistributed",
    },
    others=(AUTO,),
)

__all__ = ["AUTO", "TRANSPORTS"]
