"""What a cap on the load of every node implies."""

from __future__ import annotations

from typing import NamedTuple

from placement.bounds.spectral_bound import MARGIN, Pieces


class NodeRange(NamedTuple):
    """What a cap on every node's share of the load implies: its range, and the most of the sum of squares of shares."""

    least: float
    most: float
    square: float


def node_range(pieces: Pieces) -> NodeRange:
    """The other nodes hold the cap each at most, and a node the rest; squares are largest at the ends of the range."""
    nodes, most = pieces.num_nodes, pieces.most_node
    if most >= 1:
        return NodeRange(0.0, 1.0, 1.0)
    least = max(1 - (nodes - 1) * most, 0.0)
    left, square = 1.0, 0.0
    for after in range(nodes - 1, -1, -1):
        share = min(most, left - after * least)
        square += share * share
        left -= share
    return NodeRange(least * (1 - MARGIN), most * (1 + MARGIN), square * (1 + 4 * MARGIN))
