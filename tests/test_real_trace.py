"""On a real trace the answer beats eplb on held-out requests by what is promised. Skipped where the trace is absent."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import pytest

from placement import Cluster, Options, open_trace, solve

TRACE = Path(__file__).resolve().parents[2] / "shared" / "data" / "gptoss20b"

pytestmark = pytest.mark.skipif(not TRACE.exists(), reason="the real trace gptoss20b is not here")


@pytest.mark.parametrize(
    ("redundant", "seeds", "most_sends", "most_imbalance"), [(0, range(5), 0.80, 0.03), (8, range(2), 0.80, 0.06)]
)
def test_held_out_gain_over_eplb(redundant: int, seeds: range, most_sends: float, most_imbalance: float) -> None:
    """Mean over splits: the share of eplb's sends, and the rank imbalance beyond eplb's (mean over layers)."""
    trace = open_trace(TRACE)
    cluster = Cluster.fit(trace.model.num_experts, num_nodes=4, gpus_per_node=2, redundant_experts=redundant)
    sends, uneven = [], []
    for seed in seeds:
        held_out = solve(trace, cluster, Options(seed=seed, bound="none"), holdout=0.3).held_out
        eplb, ours = held_out["eplb"], held_out["auto"]
        sends.append(ours.node_sends_L.mean() / eplb.node_sends_L.mean())
        uneven.append(ours.rank_imbalance_L().mean() - eplb.rank_imbalance_L().mean())
    assert mean(sends) <= most_sends
    assert mean(uneven) <= most_imbalance
