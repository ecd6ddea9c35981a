"""What a transport, given by its name, costs on a cluster: the objective of a placement."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.cost.traffic import Traffic
from placement.cost.transports import TRANSPORTS
from placement.cost.transports.base import PER_NODE

ROUNDING = 1e-12  # sends per token that are none


@lru_cache(maxsize=64)
def fare_HX(cluster: Cluster, transport: str) -> npt.NDArray[np.float64]:
    """Cost of a copy from home node h to node or rank x, read-only; see `Transport.fare_HX`."""
    fares = TRANSPORTS.make(transport).fare_HX(cluster)
    fares.setflags(write=False)  # shared by all who ask
    return fares


def wire_cost(traffic: Traffic, cluster: Cluster, transport: str, num_tokens: float) -> float:
    """Sends of the transport per token, each weighed by its fare; plain counts where all links are alike."""
    return TRANSPORTS.make(transport).cost(traffic, fare_HX(cluster, transport), num_tokens)


def links_NN(traffic: Traffic, cluster: Cluster, transport: str, num_tokens: float) -> npt.NDArray[np.float64]:
    """The same sends from home node to node, float64 [N, N]."""
    return TRANSPORTS.make(transport).links_NN(traffic, fare_HX(cluster, transport), num_tokens)


def into_G(traffic: Traffic, cluster: Cluster, transport: str, num_tokens: float) -> npt.NDArray[np.float64]:
    """The same sends into each GPU, float64 [G]."""
    return TRANSPORTS.make(transport).into_G(traffic, fare_HX(cluster, transport), num_tokens)


def busiest_in_out(links_LNN: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """What goes into the node that gets most, and out of the node that sends most, over the mean node: float64 [L]
    each; 1 where nothing is sent."""
    links_LNN = nothing_but_sends(links_LNN)
    return imbalance_of(links_LNN.sum(axis=1)), imbalance_of(links_LNN.sum(axis=2))


def nothing_but_sends(sends: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The sends, those that are rounding errors set to 0."""
    return np.where(sends < ROUNDING, 0.0, sends)


def imbalance_of(
    load_LX: npt.NDArray[np.float64], speed_X: npt.NDArray[np.float64] | float = 1.0
) -> npt.NDArray[np.float64]:
    """The highest load, each divided by its speed, over the mean load: float64 [L]; 1 where there is none."""
    mean_L = load_LX.mean(axis=1)
    none_L = mean_L == 0
    return np.asarray(np.divide((load_LX / speed_X).max(axis=1), mean_L, out=np.ones_like(mean_L), where=~none_L))


def sends_are_fixed(cluster: Cluster, transport: str, num_experts: int) -> bool:
    """True if every map sends the same where homes are random, so that a placement changes nothing but balance."""
    carrier = TRANSPORTS.make(transport)
    if carrier.everywhere:
        return True
    fare_X = fare_HX(cluster, transport).mean(axis=0)
    one_each = not carrier.distinct or len(fare_X) == num_experts  # no two assignments share a copy of a token
    return cluster.num_slots == num_experts and one_each and bool(np.ptp(fare_X) <= 1e-12 * fare_X.max())


@lru_cache(maxsize=64)
def links_alike(cluster: Cluster, transport: str) -> bool:
    """True if every copy for a remote node or rank costs 1 and nothing else costs anything."""
    fares = fare_HX(cluster, transport)
    remote = np.repeat(1.0 - np.eye(cluster.num_nodes), fares.shape[1] // cluster.num_nodes, axis=1)
    return bool((fares == remote).all())


def is_plain(cluster: Cluster, transport: str) -> bool:
    """True if a token costs 1 for every remote node that it visits, and nothing else."""
    carrier = TRANSPORTS.make(transport)
    return carrier.copies == PER_NODE and not carrier.everywhere and links_alike(cluster, transport)
