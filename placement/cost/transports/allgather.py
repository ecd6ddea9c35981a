"""`allgather`: every token to every rank (vLLM's default), without experts too: a placement changes only balance."""

from __future__ import annotations

import numpy as np

from placement.cost.traffic import Traffic
from placement.cost.transports.base import PER_NODE, Floats, Transport


class AllGather(Transport):
    name = "allgather"
    engines = "vLLM's default"
    copies = PER_NODE
    everywhere = True

    def links_NN(self, traffic: Traffic, fare_HX: Floats, num_tokens: float) -> Floats:
        tokens_H = traffic.assignment_HG.sum(axis=1) + traffic.lacking_H  # in proportion to the tokens of each home
        share_H = tokens_H / tokens_H.sum() if tokens_H.any() else np.full(len(fare_HX), 1 / len(fare_HX))
        return np.asarray(share_H[:, None] * fare_HX.reshape(len(fare_HX), len(fare_HX), -1).sum(axis=2))

    def between_nodes_L(self, leaving_L3: Floats, num_nodes: int) -> Floats:
        return np.full(len(leaving_L3), num_nodes - 1.0)
