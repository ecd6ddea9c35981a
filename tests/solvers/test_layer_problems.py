"""Load vectors that placements are fitted to, against moments of resampled requests computed apart."""

from __future__ import annotations

import numpy as np
import pytest

from placement.core.cluster import Cluster
from placement.core.model import Model
from placement.solvers.layer_problems import BOOTSTRAP_SHARE, bootstrap_loads, num_bootstraps
from placement.workload.workload import Workload

EXPERTS, REQUESTS = 12, 40


def workload_of(profile_QE: np.ndarray) -> Workload:
    """Of one layer whose requests have these assignments; without a token sample."""
    requests, experts = profile_QE.shape
    return Workload(
        model=Model(name="m", layer_ids=(0,), num_experts=experts, top_k=2),
        num_tokens=int(profile_QE.sum()) // 2,
        seed=0,
        sample_tokens=0,
        profile_requests=requests,
        load_LE=profile_QE.sum(axis=0, dtype=np.int64)[None],
        coact_LEE=np.zeros((1, experts, experts), dtype=np.int64),
        sample_key_S=np.zeros(0, dtype=np.uint64),
        sample_owner_S=np.zeros(0, dtype=np.uint64),
        sample_ids_SLK=np.zeros((0, 1, 2), dtype=np.uint8),
        profile_key_Q=np.arange(requests, dtype=np.uint64),
        profile_QLE=profile_QE.astype(np.uint32)[:, None],
    )


def profiles(seed: int) -> np.ndarray:
    """Requests of equal length, so that shares of a resample are linear in what is drawn."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(1000, rng.dirichlet(np.full(EXPERTS, 30.0)), size=REQUESTS)


@pytest.mark.parametrize("seed", range(3))
def test_bootstraps_have_the_moments_of_resampled_requests(seed: int) -> None:
    """Mean exactly the training load; covariance exactly that of drawing a quarter of the requests."""
    profile_QE = profiles(seed)
    exact_E, *boots = bootstrap_loads(workload_of(profile_QE), 0, seed, 64)
    share_QE = profile_QE / profile_QE.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(exact_E, share_QE.mean(axis=0))
    np.testing.assert_allclose(np.mean(boots, axis=0), exact_E)
    drawn = int(BOOTSTRAP_SHARE * REQUESTS)
    np.testing.assert_allclose(np.cov(np.transpose(boots), ddof=0), np.cov(share_QE.T, ddof=0) / drawn, atol=1e-12)


def test_few_bootstraps_keep_the_directions_of_most_variance() -> None:
    """Fewer than experts: what differs most between requests is in them all the same."""
    rng = np.random.default_rng(0)
    topic_Q = rng.integers(0, 2, REQUESTS)
    profile_QE = np.where((np.arange(EXPERTS) % 2 == topic_Q[:, None]), 900, 100) + rng.integers(
        0, 9, (REQUESTS, EXPERTS)
    )
    boots = bootstrap_loads(workload_of(profile_QE), 0, 0, 4)[1:]
    share_QE = profile_QE / profile_QE.sum(axis=1, keepdims=True)
    drawn = int(BOOTSTRAP_SHARE * REQUESTS)
    expected = share_QE[:, ::2].sum(axis=1).var() / drawn
    assert boots[:, ::2].sum(axis=1).var() == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    "profile_QE",
    [np.full((1, 4), 5), np.zeros((3, 4), dtype=np.int64), np.array([[10, 0, 0, 0], [0, 0, 0, 10]])],
    ids=str,
)
def test_bootstraps_are_shares(profile_QE: np.ndarray) -> None:
    """One request, none at all, or two that have nothing in common: loads are never negative and sum to 1."""
    loads = bootstrap_loads(workload_of(profile_QE), 0, 0, 8)
    assert loads.min() >= 0
    np.testing.assert_allclose(loads.sum(axis=1), 1)


def test_copies_have_fewer_bootstraps() -> None:
    """A search with copies pays for each load vector at every move."""
    plain, spare = (Cluster(num_nodes=2, gpus_per_node=8, slots_per_gpu=slots) for slots in (16, 18))
    assert num_bootstraps(256, spare) < num_bootstraps(256, plain)
