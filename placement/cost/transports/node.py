"""`node`: one copy a remote node, fanned out inside the node (DeepEP normal and hybrid, hierarchical all-to-all)."""

from placement.cost.transports.base import PER_NODE, Transport


class Node(Transport):
    name = "node"
    engines = "DeepEP normal and hybrid"
    copies = PER_NODE
