"""On a real trace the answer beats eplb on held-out requests by what is promised. Skipped where the trace is absent."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest

from placement import Cluster, Options, evaluate, open_trace, solve
from placement.traces.split import split_requests

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


def test_places_without_an_expert_hardly_change_the_map(tmp_path: Path, write_trace: Any) -> None:
    """3% of the places removed at random: the map is within 1% of the full one, held out there."""
    trace = open_trace(TRACE)
    blocks = list(trace.blocks())
    layers = range(trace.model.num_layers)
    short = write_trace(
        tmp_path,
        ids_LTK=np.concatenate([np.stack([block.ids_TK(layer) for layer in layers]) for block in blocks], axis=1),
        request_T=np.concatenate([block.request_T for block in blocks]),
        request_ids=[request.id for request in trace.requests],
        num_experts=trace.model.num_experts,
        layer_ids=trace.model.layer_ids,
        short=0.03,
    )
    cluster = Cluster.fit(trace.model.num_experts, num_nodes=4, gpus_per_node=2)
    options = Options(bound="none")
    maps = [solve(one, cluster, options, holdout=0.3).placement for one in (trace, open_trace(short.folder))]
    full, lacking = evaluate(split_requests(trace, 0.3, 0)[1], maps, cluster=cluster)
    assert lacking.node_sends_L.mean() <= 1.01 * full.node_sends_L.mean()
    assert lacking.rank_imbalance_L().mean() <= 1.01 * full.rank_imbalance_L().mean()
