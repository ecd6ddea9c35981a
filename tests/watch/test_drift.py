"""The test of drift keeps its level where nothing changes, and sees what does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from placement import Model, Workload
from placement.analysis.watch import Window, drift_test
from placement.errors import OptionError

MODEL = Model(name="tiny", layer_ids=(0, 1), num_experts=8, top_k=2)
TOKENS = 40


def workload(taste_ED: npt.NDArray[np.float64], rng: np.random.Generator, requests: int = 12) -> Workload:
    """Requests that differ much from one another, as real ones do: far more than tokens drawn on their own would."""
    shape = (requests, MODEL.num_layers, MODEL.num_experts)
    share_QLE = np.exp(taste_ED + rng.normal(0.0, 0.7, shape))
    share_QLE /= share_QLE.sum(axis=2, keepdims=True)
    length_Q = rng.integers(TOKENS // 4, TOKENS, requests)
    profile_QLE = rng.multinomial((MODEL.top_k * length_Q)[:, None], share_QLE).astype(np.uint32)
    key_Q = np.sort(rng.integers(0, 2**63, requests, dtype=np.uint64))
    load_LE = profile_QLE.sum(axis=0, dtype=np.int64)
    return Workload(
        model=MODEL,
        num_tokens=int(length_Q.sum()),
        seed=0,
        sample_tokens=16,
        profile_requests=1024,
        load_LE=load_LE,
        coact_LEE=np.zeros((*load_LE.shape, MODEL.num_experts), dtype=np.int64),
        sample_key_S=np.zeros(0, dtype=np.uint64),
        sample_owner_S=np.zeros(0, dtype=np.uint64),
        sample_ids_SLK=np.zeros((0, MODEL.num_layers, MODEL.top_k), dtype=np.uint8),
        profile_key_Q=key_Q,
        profile_QLE=profile_QLE,
    )


def p_values(shift: float, runs: int) -> list[float]:
    """Of streams of four buckets, whose last two come from requests of other tastes."""
    found = []
    for run in range(runs):
        rng = np.random.default_rng(run)
        taste = rng.normal(0.0, 0.5, (MODEL.num_layers, MODEL.num_experts))
        other = taste + shift * rng.normal(0.0, 1.0, taste.shape)
        buckets = [workload(one, rng, 8) for one in (taste, taste, other, other)]
        found.append(drift_test(workload(taste, rng), buckets, seed=run).p_value)
    return found


def test_false_alarms_are_as_frequent_as_stated() -> None:
    """Without drift p is uniform, although tokens of a request are alike: a test on tokens would always see drift."""
    p = np.array(p_values(0.0, 200))
    for level in (0.05, 0.2, 0.5):
        low, high = stats.binom.interval(0.999, len(p), level)
        assert low <= np.count_nonzero(p <= level) <= high


def test_planted_shifts_are_seen() -> None:
    """Half of the window with other tastes is seen nearly always at the default level, and a larger shift always."""
    assert np.mean(np.array(p_values(0.6, 40)) <= 0.01) >= 0.8
    assert max(p_values(1.5, 20)) <= 0.01


def test_the_cut_is_where_the_traffic_changed() -> None:
    """What came before the drift can be told from what came since; only an effect of some size is called drift."""
    rng = np.random.default_rng(0)
    old, new = rng.normal(0.0, 1.0, (2, MODEL.num_layers, MODEL.num_experts))
    reference = workload(old, rng)
    buckets = [workload(one, rng) for one in (old, new, new)]
    drift = drift_test(reference, buckets)
    assert drift.drifted and drift.old_buckets == 1 and drift.requests == (24, 24)
    assert drift == drift_test(reference, buckets)
    assert not drift_test(reference, buckets, min_effect=0.9).drifted


def test_requests_that_are_in_both_are_no_news() -> None:
    """A window that still holds what the map was fitted to is not compared with itself."""
    rng = np.random.default_rng(0)
    taste = np.zeros((MODEL.num_layers, MODEL.num_experts))
    one, two = workload(taste, rng), workload(taste, rng)
    alone, overlapping = drift_test(one, [two]), drift_test(one, [one, two])
    assert drift_test(one, [one]).p_value == 1.0
    assert overlapping.requests == alone.requests == (12, 12)


def test_options_out_of_range() -> None:
    """A level that so few permutations cannot reach is refused: the test could never find anything."""
    rng = np.random.default_rng(0)
    one = workload(np.zeros((MODEL.num_layers, MODEL.num_experts)), rng)
    for wrong in ({"level": 0.0}, {"level": 0.001}, {"min_effect": 1.0}):
        with pytest.raises(OptionError):
            drift_test(one, [one], **wrong)


def test_the_window_holds_the_newest_tokens() -> None:
    """As many as asked for, to an eighth, in few buckets; and their sum is the workload of what was pushed last."""
    rng = np.random.default_rng(1)
    pieces = [workload(np.zeros((2, 8)), rng, 3) for _ in range(60)]
    window, size = Window(size_tokens=1200), 1200
    for number, piece in enumerate(pieces, start=1):
        window = window.push(piece)
        held = 0
        while sum(one.num_tokens for one in pieces[number - held : number]) < window.num_tokens:
            held += 1
        newest = pieces[number - held : number]
        assert sum(one.num_tokens for one in newest) == window.num_tokens
        assert (window.workload().load_LE == sum(one.load_LE for one in newest)).all()
        assert window.num_tokens < size + size // 8 + TOKENS * 3
        assert len(window.buckets) <= 20
    assert window.num_tokens >= size
    other = replace(pieces[0], seed=1)
    with pytest.raises(Exception, match="cannot be added"):
        window.push(other)
