"""All peers, by what they are made of."""

from __future__ import annotations

import balancers
import graphs
import partitioners
import programs

FAMILIES = {
    "what engines do: load alone": balancers.PEERS,
    "clusterings of the co-activation graph": graphs.PEERS,
    "partitioners: METIS, KaHIP, Mt-KaHyPar": partitioners.PEERS,
    "integer programs of papers": programs.PEERS,
}
PEERS = [peer for peers in FAMILIES.values() for peer in peers]
