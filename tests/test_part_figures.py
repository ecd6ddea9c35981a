"""The cost of a map on a part of the traffic is the objective that maps are searched by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placement import Cluster, Options, Placement, evaluate, open_trace
from placement.cost.step_time import STEP_TOKENS_PER_GPU, Term
from placement.pipeline.part_figures import PartFigures

CLUSTER = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=2)


@pytest.mark.parametrize("short", [False, True])
def test_in_time_it_is_the_modelled_step(short: bool, tmp_path: Path, write_trace: Any) -> None:
    """But for latency, which no map changes, and with mean links: sends and, at each layer's own price, imbalance.

    Where sets are short, layers differ in size and so in price; the price that is shown is the mean.
    """
    rng = np.random.default_rng(1)
    ids_LTK = np.argsort(rng.random((3, 50, 8)), axis=2)[:, :, :3]
    if short:
        ids_LTK[1, :, 1:] = -1  # a layer of top-1
    trace = open_trace(write_trace(tmp_path, ids_LTK=ids_LTK, num_experts=8, short=0.0 if short else None).folder)
    rows = np.stack([rng.permutation(8) for _ in range(3)])
    (answer,) = evaluate(trace, [Placement(model=trace.model, phy2log_LP=rows, **_shape())], cluster=CLUSTER)
    figures = PartFigures(
        by="domain",
        names=("a", "b"),
        left_out=(),
        train=({}, {"map": answer}),
        held_out=(),
        cluster=CLUSTER,
        options=Options(objective="time"),
        objective_W={},
    )
    copy_bits = (CLUSTER.dispatch_bytes + CLUSTER.combine_bytes) * 8
    send_us = STEP_TOKENS_PER_GPU * copy_bits / (CLUSTER.inter_gbps * 1e3)
    times_L6 = answer.term_times_L6()
    times_L6[:, Term.NETWORK] = send_us * answer.sends_L
    assert figures.cost(answer) * 3 * send_us == pytest.approx(times_L6.sum() - 3 * CLUSTER.latency_us)
    send_price, balance_price = figures.prices()
    sizes = [3, 1, 3] if short else [3, 3, 3]
    assert answer.assignments_L.tolist() == sizes
    load_us = CLUSTER.expert_bytes / (CLUSTER.gpu_tflops * 1e6) + copy_bits / (CLUSTER.intra_gbps * 1e3)
    assert (send_price, balance_price) == (1, pytest.approx(np.mean(sizes) * load_us * STEP_TOKENS_PER_GPU / send_us))


def _shape() -> dict[str, int]:
    return {
        "num_nodes": CLUSTER.num_nodes,
        "gpus_per_node": CLUSTER.gpus_per_node,
        "slots_per_gpu": CLUSTER.slots_per_gpu,
    }
