"""The best split of load over copies in every step, against a linear program for each step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement import Cluster
from placement.cost.load_split import optimal_split
from placement.cost.steps.kernel_split import split_steps
from placement.cost.steps.kernel_steps import first_rows


@settings(max_examples=80)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_every_step_is_split_as_well_as_a_linear_program_splits_it(data: st.DataObject, seed: int) -> None:
    """Never below the optimum, and within 0.1% of it: several sizes of steps at once, short and empty sets, GPUs of
    unequal speed, copies of an expert on few ranks or on all, and tokens that fill no step."""
    nodes, gpus, slots, experts = data.draw(
        st.sampled_from([(2, 1, 3, 4), (2, 2, 2, 5), (3, 1, 4, 7), (1, 4, 2, 6), (4, 2, 5, 32), (2, 4, 9, 40)])
    )
    rng = np.random.default_rng(seed)
    speeds = tuple(rng.uniform(0.5, 2.0, nodes * gpus).tolist()) if data.draw(st.booleans()) else ()
    cluster = Cluster(num_nodes=nodes, gpus_per_node=gpus, slots_per_gpu=slots, gpu_speeds=speeds)
    row = rng.permutation(np.concatenate([np.arange(experts), rng.integers(0, experts, cluster.num_slots - experts)]))
    popularity_E = rng.normal(0.0, data.draw(st.sampled_from([0.0, 2.0])), experts)
    ids_TK = np.argsort(popularity_E + rng.gumbel(size=(61, experts)), axis=1)[:, :3].astype(np.int32)
    ids_TK[np.arange(3) >= rng.choice([0, 2, 3], p=[0.1, 0.2, 0.7], size=61)[:, None]] = -1
    sizes_B = np.array(data.draw(st.sampled_from([[1], [7, 2], [30, 61]])))
    first_B = first_rows(len(ids_TK), sizes_B)
    held_C2 = np.unique(np.stack([row, cluster.rank_of_slot_P()], axis=1), axis=0)
    ptr_E, rank_C = np.searchsorted(held_C2[:, 0], np.arange(experts + 1)), np.ascontiguousarray(held_C2[:, 1])
    busiest_S = np.full(first_B[-1], np.nan)
    split_steps(ids_TK, ptr_E, rank_C, cluster.speed_G(), sizes_B, first_B, busiest_S)
    wanted = []
    for size in sizes_B.tolist():
        for start in range(0, len(ids_TK) - size + 1, size):
            step = ids_TK[start : start + size]
            wanted.append(optimal_split(np.bincount(step[step >= 0], minlength=experts), row, cluster)[1])
    assert (busiest_S >= np.array(wanted) * (1 - 1e-9)).all()
    np.testing.assert_allclose(busiest_S, wanted, rtol=1e-3)


def test_a_long_chain_of_copies_is_levelled() -> None:
    """Load at one end of a chain of ranks, each of which shares an expert with the next, reaches the other end."""
    ranks = 8
    pairs = [(e, r) for e in range(ranks - 1) for r in (e, e + 1)]
    ptr_E = np.arange(0, 2 * ranks - 1, 2)
    ids_TK = np.repeat(np.arange(ranks - 1, dtype=np.int32)[:, None], 1, axis=1)
    ids_TK = np.concatenate([ids_TK, np.zeros((1, 1), dtype=np.int32)])
    busiest_S = np.empty(1)
    rank_C = np.array([rank for _, rank in pairs])
    split_steps(ids_TK, ptr_E, rank_C, np.ones(ranks), np.array([8]), np.array([0, 1]), busiest_S)
    assert busiest_S[0] == pytest.approx(1.0, rel=1e-3)
