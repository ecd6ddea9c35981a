"""Groupings of others, written after their papers, to stand beside ours in `grouping.py`.

k-means      requests' expert counts, L2-normalised, in as many clusters as nodes; a new request goes to the nearest
             (arXiv 2604.23150, 4.1)
balanced     the same with as many tokens in every cluster (after ELDR, arXiv 2607.00466)
placement    every expert on the node whose cluster uses it most, under the slots of a node (2604.23150, Eq. 5), further
             copies where they are used most; GPUs of a node by load, heaviest first
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.cluster.vq import kmeans2
from scipy.optimize import linear_sum_assignment

from placement import Cluster, Placement, Trace
from placement.grouping import assign_homes
from placement.grouping.requests import Requests
from placement.traces.token_order import token_batches

Counts = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherGrouping:
    """A placement for the clusters, and homes of the new requests, int32 [Q] (those without tokens: -1)."""

    placement: Placement
    home_Q: npt.NDArray[np.int32]


def counts_of(trace: Trace, requests: Requests) -> Counts:
    """Expert counts of every request, [Q, L, E]."""
    shape = (trace.model.num_layers, len(requests.ids), trace.model.num_experts)
    counts_LQE = np.zeros(shape)
    for tokens in token_batches(trace, mixed=False):
        request_T = requests.request_E[tokens.request_T]
        for layer in range(shape[0]):
            np.add.at(counts_LQE[layer], (request_T[:, None], tokens.ids_TK(layer)), 1.0)
    return counts_LQE.transpose(1, 0, 2)


def group_by_kmeans(
    past_QLE: Counts, new_QLE: Counts, cluster: Cluster, trace: Trace, seed: int, *, balanced: bool
) -> OtherGrouping:
    """Clusters of past requests, a placement for them, and the clusters of new ones from what is known of these."""
    nodes = cluster.num_nodes
    past, new = past_QLE.sum(axis=(1, 2)) > 0, new_QLE.sum(axis=(1, 2)) > 0
    past_QX, new_QX = _unit(past_QLE[past]), _unit(new_QLE[new])
    centre_NX, label_Q = kmeans2(past_QX, nodes, minit="++", seed=seed, iter=50)
    tokens_Q = past_QLE[past, 0].sum(axis=1).astype(np.int64)
    if balanced:
        for _ in range(20):
            label_Q = assign_homes(_far(past_QX, centre_NX) * tokens_Q[:, None], tokens_Q, exact=False).home_Q
            centre_NX = np.stack([np.average(past_QX[label_Q == n], axis=0) for n in range(nodes)])
    home_Q = np.full(len(new_QLE), -1, dtype=np.int32)
    far_QN, new_tokens_Q = _far(new_QX, centre_NX), new_QLE[new, 0].sum(axis=1).astype(np.int64)
    if balanced:
        home_Q[new] = assign_homes(far_QN * new_tokens_Q[:, None], new_tokens_Q).home_Q
    else:
        home_Q[new] = far_QN.argmin(axis=1)
    use_NLE = np.stack([past_QLE[past][label_Q == n].sum(axis=0) for n in range(nodes)])
    rows = [_place(use_NLE[:, layer], cluster) for layer in range(trace.model.num_layers)]
    placement = Placement(
        model=trace.model,
        num_nodes=nodes,
        gpus_per_node=cluster.gpus_per_node,
        slots_per_gpu=cluster.slots_per_gpu,
        phy2log_LP=np.stack(rows),
    )
    return OtherGrouping(placement=placement, home_Q=home_Q)


def _unit(counts_QLE: Counts) -> Counts:
    flat = counts_QLE.reshape(len(counts_QLE), -1)
    return np.asarray(flat / np.linalg.norm(flat, axis=1, keepdims=True))


def _far(one_QX: Counts, centre_NX: Counts) -> Counts:
    return np.asarray(((one_QX[:, None] - centre_NX) ** 2).sum(axis=2))


def _place(use_NE: Counts, cluster: Cluster) -> npt.NDArray[np.int32]:
    """One layer: experts to the nodes that use them most, copies likewise; then to GPUs by load."""
    nodes, experts = use_NE.shape
    first = -(-experts // nodes)
    node_E = linear_sum_assignment(np.repeat(use_NE, first, axis=0).T, maximize=True)[1] // first
    held = [set(np.flatnonzero(node_E == n).tolist()) for n in range(nodes)]
    for n in range(nodes):
        for e in np.argsort(-use_NE[n], kind="stable").tolist():
            if len(held[n]) == cluster.slots_per_node:
                break
            held[n].add(e)
    load_E = use_NE.sum(axis=0) / np.sum([[e in one for e in range(experts)] for one in held], axis=0)
    row: list[int] = []
    for one in held:
        gpus: list[list[int]] = [[] for _ in range(cluster.gpus_per_node)]
        for e in sorted(one, key=lambda e: -load_E[e]):
            free = [gpu for gpu in gpus if len(gpu) < cluster.slots_per_gpu]
            min(free, key=lambda gpu: sum(load_E[x] for x in gpu)).append(e)
        row += [e for gpu in gpus for e in gpu]
    return np.array(row, dtype=np.int32)
