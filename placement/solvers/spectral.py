"""Starts from the eigenvectors of the co-activation matrix: experts used together, in balanced groups."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.solvers.eplb import balanced_packing


def spectral_map(
    coact_EE: npt.NDArray[np.int64], load_E: npt.NDArray[np.floating], cluster: Cluster
) -> npt.NDArray[np.int32]:
    """`grouped_map` by co-activation, each pair's in units of its loads."""
    return grouped_map(coact_EE / np.maximum(np.sqrt(np.outer(load_E, load_E)), 1e-12), load_E, cluster)


def grouped_map(
    weight_EE: npt.NDArray[np.float64], load_E: npt.NDArray[np.floating], cluster: Cluster
) -> npt.NDArray[np.int32]:
    """One copy of each expert (int32 [P], P = E): recursive bisection by the Fiedler vector, then packing by load."""
    rows = []
    for members in _bisect(np.arange(len(load_E)), weight_EE, cluster.num_nodes, cluster.slots_per_node):
        rank, place = balanced_packing(np.asarray(load_E[members], dtype=np.float64), cluster.gpus_per_node)
        row = np.empty(len(members), dtype=np.int32)
        row[rank * cluster.slots_per_gpu + place] = members
        rows.append(row)
    return np.concatenate(rows)


def _bisect(
    members: npt.NDArray[np.int64], weight: npt.NDArray[np.float64], parts: int, size: int
) -> list[npt.NDArray[np.int64]]:
    if parts == 1:
        return [members]
    inner = weight[np.ix_(members, members)]
    laplacian = np.diag(inner.sum(axis=1)) - inner
    fiedler = np.linalg.eigh(laplacian)[1][:, 1]
    # the sign and ties of an eigenvector are arbitrary: fix both
    fiedler = np.round(fiedler * np.sign(fiedler[np.argmax(np.abs(fiedler))]), 9)
    order = members[np.argsort(fiedler, kind="stable")]
    half = parts // 2
    return _bisect(order[: half * size], weight, half, size) + _bisect(order[half * size :], weight, parts - half, size)
