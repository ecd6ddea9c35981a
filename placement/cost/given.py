"""What maps are measured on, checked: the cluster of each, and the homes of requests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.core.model import Model
from placement.core.placement import Placement
from placement.cost.transports import TRANSPORTS
from placement.errors import MapError, OptionError


def clusters_for(
    model: Model, placements: Sequence[Placement], cluster: Cluster | Sequence[Cluster | None] | None, transport: str
) -> list[Cluster]:
    """The cluster of each map; raises where a map is for another model or shape, or the transport leaves links out."""
    TRANSPORTS.check(transport)
    for placement in placements:
        if not model.same_routing(placement.model):
            raise MapError(f"the map is for {placement.model.routing_said}; the trace has {model.routing_said}")
    given = [cluster] * len(placements) if cluster is None or isinstance(cluster, Cluster) else cluster
    clusters = [cluster_of(placement, one) for placement, one in zip(placements, given, strict=True)]
    for one in dict.fromkeys(clusters):
        TRANSPORTS.make(transport).check(one)
    return clusters


def cluster_of(placement: Placement, cluster: Cluster | None) -> Cluster:
    if cluster is None:
        return Cluster.of(placement)
    if cluster.shape != placement.shape:
        nodes, gpus, slots = placement.shape
        raise MapError(
            f"the map is for {nodes} nodes x {gpus} GPUs x {slots} slots; the cluster has "
            f"{' x '.join(map(str, cluster.shape))}"
        )
    placement.check_hosts(cluster)
    return cluster


def checked_homes(
    home_Q: npt.NDArray[np.int32] | None, num_requests: int, placements: Sequence[Placement]
) -> npt.NDArray[np.int32]:
    if home_Q is None:
        return np.full(num_requests, -1, dtype=np.int32)
    homes = np.asarray(home_Q, dtype=np.int32)
    nodes = min((placement.num_nodes for placement in placements), default=64)
    if homes.shape != (num_requests,):
        raise OptionError(
            f"home_Q has shape {list(homes.shape)}; one home for each of {num_requests} requests is needed"
        )
    if len(homes) and (homes.min() < -1 or homes.max() >= nodes):
        raise OptionError(
            f"home_Q has nodes from {homes.min()} to {homes.max()}; -1 (random) to {nodes - 1} are allowed"
        )
    return homes
