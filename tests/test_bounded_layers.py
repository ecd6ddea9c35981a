"""Of models with many experts, the quick bound is computed on some layers, and the summary says on how many."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from placement import open_trace, solve
from placement.core.cluster import Cluster
from placement.core.model import Model
from placement.pipeline.solve_layers import BOUNDED_LAYERS, BOUNDED_ON_MANY_NODES, is_bounded
from placement.report.solution.summary import proof
from placement.solvers.options import Options


@pytest.mark.parametrize("layers", [1, BOUNDED_LAYERS, BOUNDED_LAYERS + 1, 58])
@pytest.mark.parametrize(
    ("experts", "nodes", "slots", "homes_given", "number"),
    [
        (64, 4, 16, False, 58),
        (65, 5, 13, False, BOUNDED_LAYERS),
        (65, 13, 5, False, BOUNDED_LAYERS),
        (16, 4, 4, True, 58),
        (20, 5, 4, True, BOUNDED_LAYERS),
        (16, 5, 4, False, 58),
        (16, 13, 2, False, 58),
        (17, 5, 4, False, BOUNDED_LAYERS),
        (17, 13, 2, False, BOUNDED_ON_MANY_NODES),
        (64, 13, 5, False, BOUNDED_ON_MANY_NODES),
    ],
)
def test_layers_that_are_bounded(
    experts: int, nodes: int, slots: int, homes_given: bool, number: int, layers: int
) -> None:
    """Few experts, fewer where they have copies or homes are given, or few layers: all; else as many as are said,
    spread evenly."""
    cluster = Cluster(num_nodes=nodes, gpus_per_node=1, slots_per_gpu=slots)
    model = Model(name="m", layer_ids=tuple(range(layers)), num_experts=experts, top_k=2)
    bounded = [layer for layer in range(layers) if is_bounded(layer, model, cluster, homes_given=homes_given)]
    if layers <= number:
        assert bounded == list(range(layers))
        return
    assert len(bounded) == number and bounded[0] == 0
    steps = {after - before for before, after in pairwise(bounded)}
    assert max(steps) - min(steps) <= 1


@pytest.mark.parametrize(
    ("nodes", "redundant"), [(2, 0), (8, 0), (32, 0), (64, 0), (3, 1), (10, 2), (25, 22), (40, 32), (64, 64)]
)
def test_many_experts_are_bounded_on_any_number_of_nodes(
    nodes: int, redundant: int, tmp_path: Path, write_trace: Any
) -> None:
    """Also on more nodes than a short climb has eigenvectors of its own: the bound is proven, and not trivial."""
    trace = open_trace(write_trace(tmp_path / "t", tokens=300, num_experts=128, top_k=4).folder)
    cluster = Cluster.fit(128, num_nodes=nodes, gpus_per_node=1, redundant_experts=redundant)
    for layer in solve(trace, cluster, Options(work_limit=200, balance_weight=0), workers=1).layers:
        assert layer.gap is not None and 0 <= layer.gap < 0.9


def test_tight_bounds_every_layer(tmp_path: Path, write_trace: Any) -> None:
    """The quick bound leaves layers without a gap, which the tight one does not."""
    trace = open_trace(write_trace(tmp_path / "t", tokens=60, num_layers=18, num_experts=66).folder)
    cluster = Cluster.fit(66, num_nodes=2, gpus_per_node=1)
    for bound, number in (("quick", BOUNDED_LAYERS), ("tight", 18)):
        solution = solve(trace, cluster, Options(work_limit=100, bound=bound), workers=1)
        assert sum(layer.gap is not None for layer in solution.layers) == number
        assert (f"on the {BOUNDED_LAYERS} of 18 layers bounded" in proof(solution)) == (bound == "quick")
