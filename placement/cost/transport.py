"""What an engine's all-to-all puts on the network, and what it costs: the objective of a placement.

node        one copy a remote node, fanned out inside it (DeepEP normal and hybrid, hierarchical all-to-all)
rank        one copy a remote rank (deduplicated flat all-to-all)
assignment  one copy a remote assignment (DeepEP low latency): with one copy an expert, the same for every map
allgather   every token to every rank (vLLM's default): a placement changes nothing but balance
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from placement.core.choices import TRANSPORTS
from placement.core.cluster import Cluster
from placement.cost.traffic import Traffic
from placement.errors import OptionError


def check_transport(name: str) -> None:
    if name not in TRANSPORTS:
        raise OptionError(f"transport={name!r} is unknown; choose one of {', '.join(TRANSPORTS)}")


@lru_cache(maxsize=64)
def fare_HX(cluster: Cluster, transport: str) -> npt.NDArray[np.float64]:
    """Cost of a copy from home node h to node (`node`, `allgather`) or rank x, float64 [N, N] or [N, G].

    1 is a copy between two nodes at `inter_gbps`.
    """
    check_transport(transport)
    shape = (cluster.num_nodes, cluster.gpus_per_node, cluster.inter_gbps)
    topology = cluster.topology
    fares = topology.node_cost_NN(*shape) if transport in ("node", "allgather") else topology.rank_cost_NG(*shape)
    fares.setflags(write=False)  # shared by all who ask
    return fares


def wire_cost(traffic: Traffic, cluster: Cluster, transport: str, num_tokens: float) -> float:
    """Sends of the transport per token, each weighed by its fare; plain counts where all links are alike."""
    fares = fare_HX(cluster, transport)
    if transport == "allgather":
        tokens_H = traffic.assignment_HG.sum(axis=1)  # in proportion to the tokens of each home
        share_H = tokens_H / tokens_H.sum() if tokens_H.any() else np.full(cluster.num_nodes, 1 / cluster.num_nodes)
        return float(share_H @ fares.sum(axis=1))
    copies = {"node": traffic.node_HN, "rank": traffic.rank_HG, "assignment": traffic.assignment_HG}[transport]
    return float(((copies * fares).sum() + traffic.remote_3[TRANSPORTS.index(transport)]) / max(num_tokens, 1))


def sends_are_fixed(cluster: Cluster, transport: str, num_experts: int) -> bool:
    """True if every map sends the same where homes are random, so that a placement changes nothing but balance."""
    if transport == "allgather":
        return True
    fare_X = fare_HX(cluster, transport).mean(axis=0)
    one_each = transport == "assignment" or len(fare_X) == num_experts  # no two assignments share a copy of a token
    return cluster.num_slots == num_experts and one_each and bool(np.ptp(fare_X) <= 1e-12 * fare_X.max())


@lru_cache(maxsize=64)
def links_alike(cluster: Cluster, transport: str) -> bool:
    """True if every copy for a remote node or rank costs 1 and nothing else costs anything."""
    fares = fare_HX(cluster, transport)
    remote = np.repeat(1.0 - np.eye(cluster.num_nodes), fares.shape[1] // cluster.num_nodes, axis=1)
    return bool((fares == remote).all())


def is_plain(cluster: Cluster, transport: str) -> bool:
    """True if every copy for a remote node costs 1 and nothing else costs anything."""
    return transport == "node" and links_alike(cluster, transport)
