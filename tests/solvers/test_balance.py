"""Balance alone: valid maps of all layers at once, never less balanced than EPLB's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.core.cluster import Cluster
from placement.core.placement import map_faults
from placement.errors import OptionError
from placement.solvers.balancing.balance import balance_maps
from placement.solvers.eplb import eplb_map
from placement.solvers.moves import separate_copies
from placement.support.parallel import make_executor


def imbalance(row: npt.NDArray[np.integer], load_E: npt.NDArray[np.float64], cluster: Cluster) -> float:
    """Written apart from the library: most loaded rank over the mean, copies sharing evenly."""
    each_E = load_E / np.maximum(np.bincount(row, minlength=len(load_E)), 1)
    load_G = each_E[row].reshape(cluster.num_ranks, -1).sum(axis=1)
    return float((load_G / cluster.speed_G()).max() / max(load_G.mean(), 1e-300))


def eplb_rows(load_E: npt.NDArray[np.float64], cluster: Cluster, num_groups: int) -> list[npt.NDArray[np.int32]]:
    """EPLB's global map and that by groups, made valid."""
    return [
        separate_copies(
            eplb_map(
                load_E,
                num_slots=cluster.num_slots,
                num_groups=groups,
                num_nodes=cluster.num_nodes,
                num_ranks=cluster.num_ranks,
            ),
            cluster,
            load_E,
        )
        for groups in (1, num_groups)
    ]


@st.composite
def layers(draw: st.DrawFn) -> tuple[npt.NDArray[np.float64], Cluster, int]:
    """(loads [L, E], cluster, groups) of every shape: skewed, tied and empty loads, redundant slots, odd speeds."""
    nodes, gpus = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    groups = nodes * draw(st.integers(1, 2))
    num_experts = groups * draw(st.integers(1, 5))
    least = -(-num_experts // (nodes * gpus))
    slots = draw(st.integers(least, min(least + 3, num_experts)))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    kind = draw(st.sampled_from(["skewed", "tied", "one hot"]))
    if kind == "skewed":
        load_LE = rng.lognormal(0, draw(st.sampled_from([0.5, 2.0])), (2, num_experts))
    else:
        load_LE = rng.integers(0, 3 if kind == "tied" else 2, (2, num_experts)).astype(np.float64)
    speeds = tuple(rng.uniform(0.5, 2.0, nodes * gpus).tolist()) if draw(st.booleans()) else ()
    return load_LE, Cluster(num_nodes=nodes, gpus_per_node=gpus, slots_per_gpu=slots, gpu_speeds=speeds), groups


@settings(max_examples=150, deadline=None)
@given(layers(), st.sampled_from([1, 100, None]))
def test_never_less_balanced_than_eplb(layer: tuple[npt.NDArray[np.float64], Cluster, int], work: int | None) -> None:
    """Neither policy of EPLB balances any layer better, whatever the work limit; and the maps are valid."""
    load_LE, cluster, groups = layer
    maps = balance_maps(load_LE, cluster, num_groups=groups, work=work)
    assert not map_faults(
        maps,
        num_layers=len(load_LE),
        num_experts=load_LE.shape[1],
        num_ranks=cluster.num_ranks,
        slots_per_gpu=cluster.slots_per_gpu,
    )
    for row, load_E in zip(maps, load_LE, strict=True):
        ours = imbalance(row, load_E, cluster)
        for theirs in eplb_rows(load_E, cluster, groups):
            assert ours <= imbalance(theirs, load_E, cluster) * (1 + 1e-9)


@settings(max_examples=100, deadline=None)
@given(layers())
def test_groups_stay_on_their_node(layer: tuple[npt.NDArray[np.float64], Cluster, int]) -> None:
    """With `keep_groups` a group's experts, copies too, are on one node; EPLB by groups does not balance better."""
    load_LE, cluster, groups = layer
    size = load_LE.shape[1] // groups
    if cluster.slots_per_gpu > load_LE.shape[1] // cluster.num_nodes:
        with pytest.raises(OptionError, match="groups cannot be kept"):
            balance_maps(load_LE, cluster, num_groups=groups, keep_groups=True)
        return
    maps = balance_maps(load_LE, cluster, num_groups=groups, keep_groups=True)
    node_P = np.arange(cluster.num_slots) // cluster.slots_per_node
    for row, load_E in zip(maps, load_LE, strict=True):
        assert sorted(set(row.tolist())) == list(range(len(load_E)))
        assert all(len(set(held)) == len(held) for held in row.reshape(cluster.num_ranks, -1).tolist())
        assert all(len(set(node_P[row // size == group].tolist())) == 1 for group in range(groups))
        theirs = eplb_rows(load_E, cluster, groups)[1]
        kept = all(len(set(node_P[theirs // size == group].tolist())) == 1 for group in range(groups))
        if kept:  # mending a double may take it to another node
            assert imbalance(row, load_E, cluster) <= imbalance(theirs, load_E, cluster) * (1 + 1e-9)


def test_skewed_deepseek_layers_are_nearly_even() -> None:
    """The size that it is made for: 256 experts on 288 slots of 32 GPUs end within 0.3% of even, EPLB about 1% off."""
    rng = np.random.default_rng(0)
    load_LE = rng.lognormal(0, 0.5, (8, 256))
    cluster = Cluster(num_nodes=4, gpus_per_node=8, slots_per_gpu=9)
    maps = balance_maps(load_LE, cluster)
    assert max(imbalance(row, load_E, cluster) for row, load_E in zip(maps, load_LE, strict=True)) < 1.003


def test_same_maps_with_any_number_of_workers() -> None:
    """Layers are independent, so threads change nothing."""
    load_LE = np.random.default_rng(1).lognormal(0, 1, (20, 32))
    cluster = Cluster(num_nodes=2, gpus_per_node=4, slots_per_gpu=5)
    alone = balance_maps(load_LE, cluster)
    with make_executor(3) as executor:
        assert np.array_equal(alone, balance_maps(load_LE, cluster, executor=executor))


def test_fast_ranks_get_more_load() -> None:
    """Loads are evened out by speed: the rank of speed 3 serves three times as much."""
    cluster = Cluster(num_nodes=1, gpus_per_node=2, slots_per_gpu=3, gpu_speeds=(1.0, 3.0))
    load_E = np.array([6.0, 3.0, 1.0, 1.0, 1.0, 0.0])
    row = balance_maps(load_E[None], cluster)[0]
    assert imbalance(row, load_E, cluster) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("load_LE", "more", "message"),
    [
        ([[1.0, -1.0, 1.0, 1.0]], {}, "0 or more"),
        ([[1.0, float("nan"), 1.0, 1.0]], {}, "finite"),
        ([1.0, 1.0, 1.0, 1.0], {}, "layers, experts"),
        ([[1.0, 1.0, 1.0, 1.0]], {"num_groups": 3}, "num_groups=3 must divide"),
        ([[1.0, 1.0, 1.0, 1.0]], {"keep_groups": True}, "num_groups=None cannot be kept"),
        ([[1.0, 1.0, 1.0, 1.0]], {"num_groups": 1, "keep_groups": True}, "num_groups=1 cannot be kept"),
    ],
)
def test_bad_input_is_named(load_LE: list[float], more: dict[str, object], message: str) -> None:
    """One line says what is wrong."""
    with pytest.raises(OptionError, match=message):
        balance_maps(np.array(load_LE), Cluster(num_nodes=2, gpus_per_node=1, slots_per_gpu=2), **more)  # type: ignore[arg-type]
