"""`rank`: one copy a remote rank (deduplicated flat all-to-all)."""

from placement.cost.transports.base import PER_RANK, Transport
from placement.cost.transports.node import Node


class Rank(Transport):
    name = "rank"
    engines = "flat, one copy a GPU"
    copies = PER_RANK
    flattened = Node.name
