"""Presets resemble the recordings that they were fitted on: GPT-OSS-20B in four statistics, models of 128 experts and
more in their loads and strong pairs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from placement import count
from placement.analysis.info import TraceInfo, describe
from placement.documents.pair_file import read_pairs
from placement.traces.synth import write_synthetic
from placement.traces.synthetic.likeness import Likeness
from placement.traces.synthetic.presets import preset
from placement.traces.trace import open_trace
from placement.workload.as_likeness import likeness_of

REPOSITORY = Path(__file__).parents[2]
RECORDINGS = REPOSITORY.parent / "shared" / "data"
REAL = RECORDINGS / "gptoss20b"
TOLERANCE = 0.1
# luck of few requests in a domain, not one of the four
LOOSE = {"domain_drift_chance": 0.25}
# means over layers of the real trace: 74,750 tokens in 247 requests of 11 domains
EXPECTED = {
    "load_skew": 2.509,
    "load_cv": 0.707,
    "coactivation_lift": 1.898,
    "domain_drift": 0.1405,
    "domain_drift_chance": 0.0725,
    "overlap": 0.4412,
    "overlap_chance": 0.1894,
}


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> TraceInfo:
    folder = tmp_path_factory.mktemp("synthetic") / "trace"
    write_synthetic(folder, preset("gpt-oss-20b"), num_tokens=74_750, num_requests=247)
    return describe(open_trace(folder))


@pytest.mark.parametrize("measure", EXPECTED)
def test_the_statistics_of_the_preset_are_near_those_of_the_real_trace(synthetic: TraceInfo, measure: str) -> None:
    """Protects the defaults of `Strengths`."""
    assert synthetic.mean(measure) == pytest.approx(EXPECTED[measure], rel=LOOSE.get(measure, TOLERANCE))


@pytest.mark.parametrize("measure", EXPECTED)
def test_the_expected_statistics_are_still_those_of_the_real_trace(measure: str) -> None:
    """Protects the definitions of the statistics and the constants above."""
    if not (REAL / "trace.json").exists():
        pytest.skip(f"the real trace is not there: {REAL}")
    assert describe(open_trace(REAL)).mean(measure) == pytest.approx(EXPECTED[measure], rel=1e-3)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Means over layers: max / mean, standard deviation / mean and Gini index of the loads; share and lift of strong
    pairs. NaN: was not published."""

    skew: float
    cv: float
    gini: float = float("nan")
    share: float = float("nan")
    lift: float = float("nan")

    def near(self, real: Figures, load: float, pair: float) -> bool:
        pairs = [(self.skew, real.skew), (self.cv, real.cv), (self.gini, real.gini)]
        near = [abs(a / b - 1) <= load for a, b in pairs if b == b]
        return all(
            near + [abs(a / b - 1) <= pair for a, b in ((self.share, real.share), (self.lift, real.lift)) if b == b]
        )


def figures(like: Likeness) -> Figures:
    """Of loads and pairs, whatever they are from."""
    load_LE = np.sort(like.share_LE, axis=1)
    mean_L, experts = load_LE.mean(axis=1), load_LE.shape[1]
    assert like.pairs_L is not None
    return Figures(
        skew=float((load_LE.max(axis=1) / mean_L).mean()),
        cv=float((load_LE.std(axis=1) / mean_L).mean()),
        gini=float(
            (2 * (load_LE @ np.arange(1, experts + 1)) / (experts**2 * mean_L) - (experts + 1) / experts).mean()
        ),
        share=float(np.mean([pairs.share for pairs in like.pairs_L])),
        lift=float(np.mean([pairs.lift for pairs in like.pairs_L])),
    )


# by preset: figures of the recording, tokens of it, requests that the synthetic trace gets
RECORDED = {
    "qwen3-30b": (Figures(skew=5.63, cv=1.118, gini=0.556, share=0.474, lift=3.45), 75_773, 300),
    "qwen3-next": (Figures(skew=7.27, cv=0.990, gini=0.496, share=0.342, lift=6.68), 24_963, 100),
    "gemma-4-26b": (Figures(skew=7.8, cv=1.38), 40_000, 160),
    "glm-5.2": (Figures(skew=6.2, cv=0.80, gini=0.38), 40_000, 160),
}
PAIR_FILES = {"qwen3-30b": "coactivation_qwen3-30b-a3b.json", "qwen3-next": "coactivation_qwen3-next-80b-a3b.json"}


@pytest.mark.parametrize("name", RECORDED)
def test_presets_of_many_experts_are_near_the_recorded_models(name: str, tmp_path: Path) -> None:
    """Within 15% of the recorded loads and 20% of the recorded strong pairs, in layers that see the whole context."""
    real, tokens, requests = RECORDED[name]
    shape = preset(name)
    few = replace(shape, model=replace(shape.model, layer_ids=shape.model.layer_ids[:5]))
    write_synthetic(tmp_path / "t", few, num_tokens=tokens, num_requests=requests)
    like = likeness_of(count(open_trace(tmp_path / "t")))
    assert like.pairs_L is not None
    found = figures(replace(like, share_LE=like.share_LE[2:], pairs_L=like.pairs_L[2:]))
    assert found.near(real, 0.15, 0.2), (found, real)


@pytest.mark.parametrize("name", PAIR_FILES)
def test_the_recorded_figures_are_still_those_of_the_pair_files(name: str) -> None:
    """Protects the constants above, and the reader of pair files on files that others wrote."""
    path = RECORDINGS / "mbolt_pairs" / PAIR_FILES[name]
    if not path.exists():
        pytest.skip(f"the pair file is not there: {path}")
    like = Likeness.of(read_pairs(path))
    assert figures(like).near(RECORDED[name][0], 0.005, 0.005), figures(like)
