"""Which lists of hosts are read, which are refused, and what cannot be done with scattered ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scattered_ranks import HOSTS, cluster_with, random_map

from placement.core.migration import migration_plan
from placement.cost.evaluation import evaluate
from placement.documents.cluster_yaml import cluster_from_yaml
from placement.errors import ClusterError, MapError
from placement.runtime.layer_map import LayerMap
from placement.traces.trace import open_trace


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("[0, 1, 1, 1, 0, 1, 0, 0]", HOSTS),
        ("[a, b, b, b, a, b, a, a]", HOSTS),
        ("[node-7, node-3, node-3, node-3, node-7, node-3, node-7, node-7]", HOSTS),
        ("[1, 0, 0, 0, 1, 0, 1, 1]", tuple(1 - host for host in HOSTS)),
        ("[0, 0, 0, 0, 1, 1, 1, 1]", ()),
        ("[x, x, x, x, y, y, y, y]", ()),
        ("null", ()),
    ],
)
def test_cluster_files_name_hosts_by_number_or_name(text: str, hosts: tuple[int, ...], tmp_path: Path) -> None:
    """Names are numbered by their first ranks; a list that goes node by node says nothing new."""
    path = tmp_path / "c.yaml"
    path.write_text(f"{{num_nodes: 2, gpus_per_node: 4, rank_hosts: {text}}}")
    assert cluster_from_yaml(path, 16).rank_hosts == hosts
    if hosts:
        path.write_text(f"{{num_nodes: 2, rank_hosts: {text}}}")
        assert cluster_from_yaml(path, 16).gpus_per_node == 4


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("num_nodes: 2, gpus_per_node: 4, rank_hosts: [0, 1, 1, 1, 0, 1, 0]", r"\[3, 4\] ranks in turn"),
        ("num_nodes: 2, gpus_per_node: 4, rank_hosts: [0, 1, 1, 1, 1, 1, 0, 0]", r"\[3, 5\] ranks in turn"),
        ("num_nodes: 2, gpus_per_node: 4, rank_hosts: [0, 1, 1, 1, 0, 2, 0, 0]", "names node 2; each of the 2 nodes"),
        ("num_nodes: 2, gpus_per_node: 4, rank_hosts: [0, -1, 1, 1, 0, 1, 0, 0]", "names node -1"),
        ("num_nodes: 2, rank_hosts: [a, b, c, a]", "names node 2"),
        ("num_nodes: 2, rank_hosts: [0, 1.5]", r"rank_hosts"),
        ("num_nodes: 2, rank_hosts: 0", r"rank_hosts"),
        ("num_nodes: 2, gpus_per_node: [8, 4]", r"gpus_per_node: \[8, 4\] are several numbers; nodes of unequal size"),
    ],
)
def test_lists_that_cannot_be(text: str, told: str, tmp_path: Path) -> None:
    """One line names what is wrong with the list."""
    path = tmp_path / "c.yaml"
    path.write_text(f"{{{text}}}")
    with pytest.raises(ClusterError, match=told) as refused:
        cluster_from_yaml(path, 16)
    assert "\n" not in str(refused.value)


def test_maps_of_other_numbers_of_ranks_are_not_mixed(tmp_path: Path, write_trace: Any) -> None:
    """A map that was made for ranks node by node is not measured, or changed, as one of scattered ranks."""
    trace = open_trace([write_trace(tmp_path / "t", num_experts=16, top_k=3).folder])
    scattered = cluster_with(HOSTS)
    plain = replace(scattered, rank_hosts=())
    for cluster, other in ((scattered, plain), (plain, scattered)):
        placement = random_map(other, experts=16)
        with pytest.raises(MapError, match=r"node by node.*import the map again"):
            evaluate(trace, [placement], cluster=cluster)
        with pytest.raises(MapError, match=r"rank_hosts"):
            migration_plan(placement, random_map(cluster, experts=16), cluster)


def test_the_runtime_refuses_scattered_ranks() -> None:
    """Its exchanges go by blocks of ranks: another order is refused, not taken for node by node."""
    with pytest.raises(MapError, match=r"lie on nodes \[0, 1, 1, 1, 0, 1, 0, 0\]; .* node by node, as torchrun does"):
        LayerMap.of(random_map(cluster_with(HOSTS)), 0)
