"""Dropped shares against the formula, step by step, whatever the shards and blocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.analysis.advise.capacity_factor import FACTORS, IN_ORDER, MIXED, WHOLE, capacity
from placement.errors import OptionError
from placement.traces import trace as trace_module
from placement.traces.trace import open_trace

Loads = list[np.ndarray]


def brute_dropped(loads: Loads, factor: float) -> float:
    """DT of equation 11, one expert after the other."""
    over = sum(max(float(n) - factor * float(load.sum()) / len(load), 0.0) for load in loads for n in load)
    return over / max(sum(float(load.sum()) for load in loads), 1)


def brute_load(ids: np.ndarray, experts: int) -> np.ndarray:
    """How often each expert is visited; -1 is none."""
    return np.array([int((ids == e).sum()) for e in range(experts)])


def brute_steps(ids_TK: np.ndarray, experts: int, step: int) -> Loads:
    whole = len(ids_TK) // step * step
    return [brute_load(part, experts) for part in ids_TK[:whole].reshape(-1, step, ids_TK.shape[1])]


@settings(max_examples=25)
@given(
    tokens=st.integers(1, 90),
    step=st.integers(1, 40),
    shards=st.integers(1, 3),
    block=st.integers(1, 50),
    most=st.sampled_from([0.0, 0.02, 0.2]),
    short=st.sampled_from([None, 0.0, 0.5]),
    seed=st.integers(0, 99),
)
def test_dropped_shares_are_those_of_the_formula(
    tokens: int, step: int, shards: int, block: int, most: float, short: float | None, seed: int, write_trace: Any
) -> None:
    """Of the whole trace and of steps in order; all layers together; and the factor is the first that drops little.

    Where sets are short, a step's mean load is that of the assignments that it has.
    """
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace_module, "CHUNK_TOKENS", block)
        shape = {"num_layers": 2, "num_experts": 6, "requests": 3, "spread": 2.0, "short": short}
        written = write_trace(Path(folder), tokens=tokens, num_shards=min(shards, tokens), seed=seed, **shape)
        found = capacity(open_trace(folder), step_tokens=step, most_dropped=most)
    steps_L = [brute_steps(ids_TK, 6, step) for ids_TK in written.ids_LTK]
    whole_L = [[brute_load(ids_TK, 6)] for ids_TK in written.ids_LTK]
    assert found.steps.get(IN_ORDER, 0) == found.steps.get(MIXED, 0) == tokens // step
    for name, loads_L in ((WHOLE, whole_L), (IN_ORDER, steps_L)):
        if name not in found.overall:
            assert tokens < step
            continue
        cases = [(layer.by[name], loads) for layer, loads in zip(found.layers, loads_L, strict=True)]
        cases.append((found.overall[name], [load for loads in loads_L for load in loads]))
        for dropping, loads in cases:
            expected = [brute_dropped(loads, factor) for factor in FACTORS]
            assert dropping.dropped == pytest.approx(expected, abs=1e-6)
            peaks = [load.max() / load.mean() if load.any() else 0.0 for load in loads]
            assert dropping.peak == pytest.approx(np.mean(peaks), abs=1e-6)
            fits = [factor for factor, share in zip(FACTORS, expected, strict=True) if share <= most + 1e-12]
            assert dropping.factor == (fits[0] if fits else None)


def test_mixed_steps_are_more_even_than_steps_in_order(tmp_path: Path, write_trace: Any) -> None:
    """Requests with tastes of their own, one after the other: a step in order sees few of them."""
    written = write_trace(tmp_path / "t", tokens=2000, requests=40, num_experts=16, spread=2.0)
    overall = capacity(open_trace(written.folder), step_tokens=100, most_dropped=0.05).overall
    assert overall[WHOLE].peak < overall[MIXED].peak < overall[IN_ORDER].peak
    assert overall[MIXED].dropped[3] < overall[IN_ORDER].dropped[3]


def test_factors_are_the_runtimes(tmp_path: Path, write_trace: Any) -> None:
    """One for each layer, by its number in the model; the largest where none drops little enough."""
    trace = open_trace(write_trace(tmp_path / "t", num_layers=2, num_experts=8, top_k=2, tokens=200).folder)
    found = capacity(trace, step_tokens=20, most_dropped=0.05)
    gamma = found.gamma(IN_ORDER)
    assert list(gamma) == list(trace.model.layer_ids)
    assert gamma == {layer.layer_id: layer.by[IN_ORDER].factor for layer in found.layers}
    never = {one.layer_id: {IN_ORDER: replace(one.by[IN_ORDER], factor=None)} for one in found.layers}
    none = replace(found, layers=tuple(replace(one, by=never[one.layer_id]) for one in found.layers))
    assert set(none.gamma(IN_ORDER).values()) == {FACTORS[-1]}
    with pytest.raises(OptionError, match="no loads of 'steps'; there are those of trace, mixed, in order"):
        found.gamma("steps")
