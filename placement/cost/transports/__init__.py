"""The registry: a transport, what an engine's all-to-all puts on the network, is one file and one line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from placement.support.registry import Registry

if TYPE_CHECKING:
    from placement.cost.transports.base import Transport

TRANSPORTS: Registry[Transport] = Registry(
    "transport=",
    {
        "node": "placement.cost.transports.node:Node",
        "rank": "placement.cost.transports.rank:Rank",
        "assignment": "placement.cost.transports.assignment:AssignmentTransport",
        "allgather": "placement.cost.transports.allgather:AllGather",
    },
)

__all__ = ["TRANSPORTS"]
