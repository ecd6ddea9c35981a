"""The comparison with peers: its verdict, and that what it makes of a peer's answer is a valid map of exact sizes."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placement import Cluster
from placement.core.placement import map_faults
from placement.testing.problems import random_problem

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks" / "peers"))

base: Any = import_module("base")
families: Any = import_module("families")
programs: Any = import_module("programs")
verdict: Any = import_module("verdict")


def test_verdict() -> None:
    """A peer is better only if it is on both figures; a front misses it by its nearest point's worse figure."""
    point = verdict.Point
    assert verdict.better_on_both(point(0.9, 0.9), point(1.0, 1.0))
    assert not verdict.better_on_both(point(0.9, 1.0), point(1.0, 1.0))
    assert not verdict.better_on_both(point(0.9, 1.1), point(1.0, 1.0))
    front = [point(1.0, 2.0), point(2.0, 1.0)]
    assert verdict.distance(point(1.0, 2.0), front) == 0
    assert verdict.distance(point(2.5, 1.0), front) == 0
    assert verdict.distance(point(1.6, 1.6), front) == pytest.approx(0.25)
    assert verdict.distance(point(1.9, 0.8), front) == pytest.approx(0.25)


def test_points_that_none_of_ours_beats() -> None:
    """The line that is drawn has no point that another of ours beats on both figures, and goes from left to right."""
    point = verdict.Point
    points = [point(1.0, 2.0), point(1.5, 2.5), point(2.0, 1.0), point(1.5, 1.5)]
    assert verdict.not_beaten(points) == [point(2.0, 1.0), point(1.5, 1.5), point(1.0, 2.0)]


@pytest.mark.parametrize("peer", families.PEERS, ids=lambda peer: peer.name)
def test_peers_answer_with_valid_maps(peer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without redundant experts, every expert has a slot and none has two on a rank."""
    monkeypatch.setattr(programs, "LIMIT_S", 0.02)
    if peer.package is not None and find_spec(peer.package) is None:
        pytest.skip(f"package {peer.package} is not installed (group peers)")
    for redundant in (0, 8):
        if peer.needs_redundant and not redundant:
            continue
        cluster = Cluster.fit(16, num_nodes=4, gpus_per_node=2, redundant_experts=redundant)
        problem = random_problem(16, 3, cluster, seed=1)
        row = np.asarray(peer.place(problem))
        assert map_faults(row[None], num_layers=1, num_experts=16, num_ranks=8, slots_per_gpu=cluster.slots_per_gpu,
                          layer_ids=(0,)) == []  # fmt: skip


def test_swaps_even_the_loads() -> None:
    """From the most uneven split, the nodes come within the slack where single swaps can bring them; sizes stay."""
    problem = random_problem(64, 4, Cluster(num_nodes=4, gpus_per_node=2, slots_per_gpu=8), skew=0.5, seed=0)
    _, vertices = base.vertices_of(problem, everywhere=False, by_load=True)
    node_V = np.empty(64, dtype=np.int64)
    node_V[np.argsort(vertices.load_V)] = np.arange(64) // 16
    evened = base.even_loads(node_V, vertices)
    load_N = np.bincount(evened, weights=vertices.load_V)
    assert np.bincount(evened).tolist() == [16] * 4
    assert load_N.max() <= (1 + base.LOAD_SLACK) * load_N.mean()
    assert np.bincount(node_V, weights=vertices.load_V).max() > (1 + base.LOAD_SLACK) * load_N.mean()
