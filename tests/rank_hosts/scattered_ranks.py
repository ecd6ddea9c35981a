"""Clusters whose nodes hold scattered ranks of an engine, and which node holds which expert."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from placement import Cluster, Model, Placement

Array = npt.NDArray[Any]

HOSTS = (0, 1, 1, 1, 0, 1, 0, 0)

LISTS: dict[str, tuple[int, ...]] = {
    "of two hosts": HOSTS,
    "dealt in turn": (0, 1, 2, 3, 0, 1, 2, 3),
    "the second host first": (1, 1, 1, 1, 0, 0, 0, 0),
    "one rank a host": (3, 1, 7, 0, 2, 6, 5, 4),
}


def cluster_with(hosts: tuple[int, ...], slots: int = 2, **more: Any) -> Cluster:
    nodes = max(hosts) + 1
    return Cluster(num_nodes=nodes, gpus_per_node=len(hosts) // nodes, slots_per_gpu=slots, rank_hosts=hosts, **more)


def random_map(cluster: Cluster, seed: int = 0, *, experts: int = 12, layers: int = 2) -> Placement:
    """A sound map, with copies where there are slots for them."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(layers):
        held: list[list[int]] = [[] for _ in range(cluster.num_ranks)]
        for expert in [*rng.permutation(experts), *rng.permutation(experts), *rng.permutation(experts)]:
            free = [one for one in held if len(one) < cluster.slots_per_gpu and expert not in one]
            if free:
                min(free, key=len).append(int(expert))
        rows.append(np.concatenate(held))
    model = Model(
        name="m", layer_ids=tuple(range(layers)), num_experts=experts, top_k=min(3, experts), num_hidden_layers=layers
    )
    return Placement(model=model, **cluster.sizes(), phy2log_LP=np.stack(rows))


def experts_of_nodes(rows_LP: Array, hosts: tuple[int, ...]) -> list[list[list[int]]]:
    """By layer and node, all experts that ranks of the node hold; rows as an engine has them, rank after rank."""
    slots = rows_LP.shape[1] // len(hosts)
    return [
        [
            sorted(int(row[rank * slots + s]) for rank, host in enumerate(hosts) if host == node for s in range(slots))
            for node in range(max(hosts) + 1)
        ]
        for row in rows_LP
    ]


def solved_nodes(placement: Placement) -> list[list[list[int]]]:
    """The same of a map in memory, where nodes follow each other."""
    held_LNS = placement.phy2log_LP.reshape(placement.model.num_layers, placement.num_nodes, -1)
    return [[sorted(held) for held in held_NS.tolist()] for held_NS in held_LNS]


def rows_of(name: str, content: bytes) -> Array:
    """Rows [L, P] of an engine's file, in the order of its ranks."""
    if name == "tensorrt-llm":
        rows = yaml.safe_load(content)["initial_global_assignments"]
        return np.array([rows[layer] for layer in sorted(rows)])
    document = json.loads(content)
    if name == "vllm-ascend":
        layers = document["layer_list"]
        return np.array([[e for one in layer["device_list"] for e in one["device_expert"]] for layer in layers])
    if name == "vllm-hygon":
        return np.array(document["model_maps"]["m"]["physical_to_logical_map"])
    if name in ("native", "vllm-plugin"):
        return np.array(document["physical_to_logical"])
    return np.array(document["physical_to_logical_map"] if name == "sglang" else document)
