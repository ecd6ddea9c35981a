"""Topology: what copies cost, what cannot be is refused, and files keep it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import link_costs

from placement import Cluster, Model, Placement, load_placement, save_placement
from placement.core.topology import EVEN, Level, Topology
from placement.documents.cluster_yaml import cluster_from_yaml
from placement.documents.parts import ClusterDetail
from placement.documents.placement import PlacementFile
from placement.errors import ClusterError, MapError

RACK, POD = Level(name="rack", nodes=2, gbps=200.0), Level(name="pod", nodes=4, gbps=50.0)
NESTED = Topology(levels=(POD, RACK), node_gbps=(400.0, 400.0, 100.0, 400.0, 400.0, 400.0, 400.0, 25.0))


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    """Any topology that `check` lets pass, on 1 to 8 nodes of 1 to 3 GPUs."""
    blocks = draw(st.sampled_from([(1,), (2,), (3,), (1, 2, 4), (2, 6), (4, 8), (2, 4, 8)]))
    nodes, gpus = blocks[-1], draw(st.integers(1, 3))
    gbps = st.sampled_from([25.0, 100.0, 400.0, 900.0])
    if draw(st.booleans()):
        row = st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=nodes * gpus, max_size=nodes * gpus)
        rows = draw(st.lists(row, min_size=nodes * gpus, max_size=nodes * gpus))
        topology = Topology(rank_cost=tuple(map(tuple, rows)))
    else:
        levels = tuple(Level(name=f"of {size}", nodes=size, gbps=draw(gbps)) for size in draw(st.permutations(blocks)))
        topology = Topology(
            levels=levels if draw(st.booleans()) else (),
            node_gbps=tuple(draw(st.lists(gbps, min_size=nodes, max_size=nodes))) if draw(st.booleans()) else (),
        )
    return Cluster(num_nodes=nodes, gpus_per_node=gpus, slots_per_gpu=1, inter_gbps=draw(gbps), topology=topology)


@given(cluster=clusters())
def test_costs_are_those_of_every_link(cluster: Cluster) -> None:
    """Node and rank fares are the means over links that their docstrings promise, looked up link by link."""
    nodes, gpus = cluster.num_nodes, cluster.gpus_per_node
    link = link_costs(cluster)
    node_cost_NN = cluster.topology.node_cost_NN(nodes, gpus, cluster.inter_gbps)
    rank_cost_NG = cluster.topology.rank_cost_NG(nodes, gpus, cluster.inter_gbps)
    assert node_cost_NN.shape == (nodes, nodes) and rank_cost_NG.shape == (nodes, nodes * gpus)
    for home in range(nodes):
        for node in range(nodes):
            rail = sum(link[home * gpus + i][node * gpus + i] for i in range(gpus)) / gpus
            assert node_cost_NN[home, node] == pytest.approx(0.0 if home == node else rail)
        for rank in range(nodes * gpus):
            mean = sum(link[home * gpus + i][rank] for i in range(gpus)) / gpus
            assert rank_cost_NG[home, rank] == pytest.approx(mean)


def test_nested_levels_by_hand() -> None:
    """Four pods' worth of cases: within a rack, between racks, between pods, and a node slower than all of them."""
    cost = NESTED.node_cost_NN(8, 1, 400.0)
    assert cost[0, 1] == 1  # one rack
    assert cost[0, 3] == 2  # another rack: 200 Gbit/s
    assert cost[0, 5] == cost[5, 0] == 8  # another pod: 50 Gbit/s
    assert cost[3, 2] == 4  # the slow node of the same rack: 100 Gbit/s
    assert cost[2, 1] == 4  # slower than the way between racks
    assert cost[2, 4] == 8  # faster than the way between pods
    assert cost[7, 0] == cost[6, 7] == 16
    assert (np.diag(cost) == 0).all()


def test_rails_by_hand() -> None:
    """Of a matrix of ranks a node's copy costs the mean of the links between GPUs of the same position."""
    costs = ((0, 1, 2, 9), (1, 0, 9, 4), (6, 9, 0, 1), (9, 8, 3, 0))
    topology = Topology(rank_cost=tuple(tuple(map(float, row)) for row in costs))
    np.testing.assert_allclose(topology.node_cost_NN(2, 2, 400.0), [[0, 3], [7, 0]])
    np.testing.assert_allclose(topology.rank_cost_NG(2, 2, 400.0), [[0.5, 0.5, 5.5, 6.5], [7.5, 8.5, 1.5, 0.5]])


def test_even_links_cost_one() -> None:
    """Without a topology every remote copy costs 1, whatever the bandwidth."""
    np.testing.assert_array_equal(EVEN.node_cost_NN(3, 2, 123.0), 1 - np.eye(3))


def of_levels(*sizes: int, gbps: float = 100.0) -> Topology:
    return Topology(levels=tuple(Level(name=f"L{size}", nodes=size, gbps=gbps) for size in sizes))


def costs_with(value: float, at: tuple[int, int] = (1, 2), ranks: int = 8) -> Topology:
    matrix = np.ones((ranks, ranks))
    matrix[at] = value
    return Topology(rank_cost=tuple(map(tuple, matrix.tolist())))


SQUARE = costs_with(1.0).rank_cost
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("topology", "told"),
    [
        (of_levels(3), "levels: 'L3' has blocks of 3 nodes.* divide the 4 nodes"),
        (of_levels(0), "levels: 'L0' has blocks of 0 nodes"),
        (of_levels(-2), "levels: 'L-2' has blocks of -2 nodes"),
        (of_levels(8), "levels: 'L8' has blocks of 8 nodes"),
        (of_levels(2, gbps=0.0), "gbps of 'L2' has 0.0; positive"),
        (of_levels(2, gbps=NAN), "gbps of 'L2' has nan"),
        (of_levels(2, gbps=INF), "gbps of 'L2' has inf"),
        (Topology(node_gbps=(1.0, 2.0)), "node_gbps has 2 values for 4 nodes; give one a node"),
        (Topology(node_gbps=(1.0, 2.0, -3.0, 1.0)), "node_gbps has -3.0; positive"),
        (Topology(node_gbps=(1.0, NAN, 3.0, 1.0)), "node_gbps has nan"),
        (costs_with(1.0, ranks=4), "rank_cost has 4 rows of .4. costs; 8 rows of 8"),
        (Topology(rank_cost=(*SQUARE[:7], SQUARE[0][:5])), "rank_cost has 8 rows of .5, 8. costs"),
        (Topology(rank_cost=((),) * 8), "rank_cost has 8 rows of .0. costs"),
        (costs_with(-0.5), "rank_cost from rank 1 to 2 is -0.5; numbers from 0"),
        (costs_with(NAN, (7, 0)), "rank_cost from rank 7 to 0 is nan"),
        (costs_with(1e9), "rank_cost from rank 1 to 2 is 1000000000.0"),
        (Topology(rank_cost=SQUARE, levels=of_levels(2).levels), "give one or the other"),
        (Topology(rank_cost=SQUARE, node_gbps=(1.0,) * 4), "give one or the other"),
    ],
)
def test_what_cannot_be_is_refused(topology: Topology, told: str) -> None:
    """One line that names the key, the value and what is allowed."""
    with pytest.raises(ClusterError, match=rf"^topology\..*{told}") as caught:
        Cluster(num_nodes=4, gpus_per_node=2, slots_per_gpu=1, topology=topology)
    assert "\n" not in str(caught.value)


def test_levels_that_do_not_nest() -> None:
    """Blocks of 2 and of 3 nodes both divide 6 nodes, but a block of 3 would cut one of 2."""
    with pytest.raises(ClusterError, match=r"'L3' has blocks of 3 nodes.*whole blocks of 2"):
        Cluster(num_nodes=6, gpus_per_node=1, slots_per_gpu=1, topology=of_levels(3, 2))


def test_yaml_says_the_same(tmp_path: Path) -> None:
    """Every key of `topology`, whole numbers too; left out or empty, links are alike."""
    path = tmp_path / "cluster.yaml"
    path.write_text("""
        num_nodes: 8
        gpus_per_node: 1
        topology:
          levels:
            - {name: pod, nodes: 4, gbps: 50}
            - {name: rack, nodes: 2, gbps: 200.0}
          node_gbps: [400, 400, 100, 400, 400, 400, 400, 25]
        """)
    assert cluster_from_yaml(path, 8).topology == NESTED
    path.write_text("{num_nodes: 2, gpus_per_node: 1, topology: {rank_cost: [[0, 2], [3.5, 0]]}}")
    assert cluster_from_yaml(path, 8).topology == Topology(rank_cost=((0.0, 2.0), (3.5, 0.0)))
    for text in ("num_nodes: 2", "{num_nodes: 2, topology: {}}", "{num_nodes: 2, topology: null}"):
        path.write_text(text)
        assert cluster_from_yaml(path, 8).topology == EVEN


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rack", r"topology: .*allowed keys"),
        ("{racks: []}", r"topology\.racks"),
        ("{levels: [{name: rack, nodes: 2}]}", r"topology\.levels\.0\.gbps"),
        ("{levels: [{name: rack, nodes: 2.5, gbps: 1}]}", r"topology\.levels\.0\.nodes"),
        ("{levels: [{name: 4, nodes: 2, gbps: 1}]}", r"topology\.levels\.0\.name"),
        ("{levels: [{name: rack, nodes: 3, gbps: 1}]}", "'rack' has blocks of 3 nodes"),
        ('{levels: [{name: "ra\\nck", nodes: 3, gbps: 1}]}', "has blocks of 3 nodes"),
        ("{levels: null}", r"topology\.levels"),
        ("{node_gbps: 100}", r"topology\.node_gbps"),
        ("{node_gbps: [fast, slow]}", r"topology\.node_gbps\.0"),
        ("{node_gbps: [1]}", "node_gbps has 1 values for 2 nodes"),
        ("{node_gbps: [1, .nan]}", "node_gbps has nan"),
        ("{node_gbps: [1, " + "9" * 400 + "]}", "node_gbps"),
        ("{rank_cost: [[0, 1], [1]]}", "rank_cost has 2 rows"),
        ("{rank_cost: [0, 1]}", r"topology\.rank_cost\.0"),
        ("{rank_cost: [[0, -1], [1, 0]]}", "rank_cost from rank 0 to 1 is -1.0"),
        ("{rank_cost: [[0, .inf], [1, 0]]}", "rank_cost from rank 0 to 1 is inf"),
    ],
)
def test_yaml_refusals(tmp_path: Path, text: str, told: str) -> None:
    """A fault in the file is one ClusterError line that names its place."""
    path = tmp_path / "cluster.yaml"
    path.write_text(f"num_nodes: 2\ngpus_per_node: 1\ntopology: {text}\n")
    with pytest.raises(ClusterError, match=told) as caught:
        cluster_from_yaml(path, 8)
    assert "\n" not in str(caught.value)


def saved(path: Path, cluster: Cluster) -> dict[str, Any]:
    """A placement file for the cluster; returns what is in it."""
    experts = cluster.num_slots
    placement = Placement(
        model=Model(name="m", layer_ids=(0,), num_experts=experts, top_k=1),
        num_nodes=cluster.num_nodes,
        gpus_per_node=cluster.gpus_per_node,
        slots_per_gpu=cluster.slots_per_gpu,
        phy2log_LP=np.arange(experts)[None],
    )
    save_placement(path, PlacementFile.of(placement, provenance={"cluster": ClusterDetail.of(cluster)}).document())
    document: dict[str, Any] = json.loads(path.read_bytes())
    return document


@given(cluster=clusters())
def test_placement_file_round_trip(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The cluster that a placement file describes is the one that it was made for, topology and all."""
    path = tmp_path_factory.getbasetemp() / "round-trip.json"
    saved(path, cluster)
    assert load_placement(path)[1].described_cluster() == cluster


def test_placement_file_with_a_bad_topology(tmp_path: Path) -> None:
    """A description that was edited by hand into one that cannot be is a MapError that names the key."""
    path = tmp_path / "p.json"
    document = saved(path, Cluster(num_nodes=8, gpus_per_node=1, slots_per_gpu=1, topology=NESTED))
    described = document["provenance"]["cluster"]
    described["topology"]["node_gbps"] = [1.0]
    path.write_text(json.dumps(document))
    with pytest.raises(MapError, match=r"provenance\.cluster: topology\.node_gbps has 1 values for 8 nodes"):
        load_placement(path)[1].described_cluster()
    described["topology"] = {"levels": [{"name": "rack"}]}
    path.write_text(json.dumps(document))
    with pytest.raises(MapError, match=r"provenance\.cluster\.topology\.levels\.0\.nodes"):
        load_placement(path)
    del described["topology"]  # written before there were topologies
    path.write_text(json.dumps(document))
    loaded = load_placement(path)[1].described_cluster()
    assert loaded is not None and loaded.topology == EVEN
