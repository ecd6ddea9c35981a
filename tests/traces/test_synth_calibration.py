"""The synthetic GPT-OSS-20B trace resembles the real one in the four statistics, on which alone it was fitted."""

from __future__ import annotations

from pathlib import Path

import pytest

from placement.analysis.info import TraceInfo, describe
from placement.traces.synth import write_synthetic
from placement.traces.synthetic.presets import preset
from placement.traces.trace import open_trace

REPOSITORY = Path(__file__).parents[2]
REAL = REPOSITORY.parent / "shared" / "data" / "gptoss20b"
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
