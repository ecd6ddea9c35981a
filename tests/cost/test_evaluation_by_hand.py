"""Figures of the evaluation worked out by hand, and what it refuses to measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_cases import sound_row

from placement import Cluster, Model, Placement, Trace, evaluate, open_trace
from placement.errors import MapError, OptionError, TraceError


def test_layers_with_a_top_k_of_their_own(tmp_path: Path, write_trace: Any) -> None:
    """By hand: two nodes of one GPU, experts 0 and 1 on the first. A layer of top-2, one of top-1, one of two tokens of
    which one lost its set; the modelled step counts the assignments of each layer."""
    ids_LTK = np.array([[[0, 2], [1, 3]], [[0, -1], [1, -1]], [[-1, -1], [3, 2]]])
    write_trace(tmp_path, ids_LTK=ids_LTK, num_experts=4, requests=1, short=0.0)
    model = Model(name="m", layer_ids=(0, 1, 2), num_experts=4, top_k=2)
    rows = np.tile(np.arange(4), (3, 1))
    placement = Placement(model=model, num_nodes=2, gpus_per_node=1, slots_per_gpu=2, phy2log_LP=rows)
    (answer,) = evaluate(open_trace(tmp_path), [placement])
    assert answer.assignments_L.tolist() == [2, 1, 1]
    assert answer.node_sends_L.tolist() == [1, 0.5, 0.25]
    assert answer.remote_assignments_L.tolist() == [1, 0.5, 0.5]
    assert answer.load_LG().tolist() == [[2, 2], [2, 0], [0, 2]]
    copy_us, bits = 256 * 21856 * 8 / 400e3, 256 * 21856 * 8 / 3600e3
    busiest = answer.sends_L * np.maximum(answer.busiest_in_L(), answer.busiest_out_L())
    busiest_load = np.array([2.0, 2.0, 2.0])  # the busiest GPU's, for each token that a GPU brings
    step_us = busiest * copy_us + busiest_load * (bits + 256 * 88_080_384 / 400e6) + 40
    assert answer.summary()["step_time_us"] == pytest.approx(step_us.sum(), abs=0.01)
    assert [layer["step_time_us"] for layer in answer.layers()] == pytest.approx(step_us, abs=0.01)
    assert {layer["governed_by"] for layer in answer.layers()} == {"compute"}


def test_by_hand(tmp_path: Path, write_trace: Any) -> None:
    """Figures worked out on paper: 2 nodes of 1 GPU, expert 1 on both, tokens {0,1} and {1,2}, random homes.

    Expert 0 is on node 0, expert 2 on node 1. min-nodes: the token {0,1} sends nothing from node 0; from node 1, which
    hosts expert 1, it sends to node 0 for expert 0. The token {1,2} mirrors it. Mean: 0.5 sends.
    uniform: {0,1} from node 0 sends with chance 1/2 (expert 1 away); from node 1 always (expert 0). Mean: 0.75 sends,
    0.5 * 0.5 + 0.5 * 1.5 = 1.0 assignments.
    """
    write_trace(tmp_path, ids_LTK=np.array([[[0, 1], [2, 1]]]), num_experts=3, requests=1)
    model = Model(name="m", layer_ids=(0,), num_experts=3, top_k=2)
    placement = Placement(
        model=model, num_nodes=2, gpus_per_node=1, slots_per_gpu=2, phy2log_LP=np.array([[0, 1, 1, 2]])
    )
    trace = open_trace(tmp_path)
    for choice, sends, remote in (("min-nodes", 0.5, 0.5), ("local-first", 0.5, 0.5), ("uniform", 0.75, 1.0)):
        (answer,) = evaluate(trace, [placement], replica_choice=choice)
        assert answer.summary()["node_sends_per_token"] == pytest.approx(sends), choice
        assert answer.summary()["remote_assignments_per_token"] == pytest.approx(remote), choice
        np.testing.assert_allclose(answer.load_LP, [[1, 1, 1, 1]])


def test_summary_figures(tmp_path: Path, write_trace: Any) -> None:
    """Bytes are copies times (dispatch + combine); step time follows the formula in its docstring."""
    written = write_trace(tmp_path, num_layers=3, num_experts=8, top_k=3, tokens=50)
    rng = np.random.default_rng(1)
    cluster = Cluster(
        num_nodes=2,
        gpus_per_node=2,
        slots_per_gpu=3,
        inter_gbps=100.0,
        intra_gbps=1000.0,
        gpu_tflops=50.0,
        expert_bytes=1_000_000,
        dispatch_bytes=100,
        combine_bytes=50,
    )
    model = Model(name="m", layer_ids=(0, 1, 2), num_experts=8, top_k=3)
    rows = np.stack([sound_row(rng, 8, 4, 3) for _ in range(3)])
    placement = Placement(model=model, num_nodes=2, gpus_per_node=2, slots_per_gpu=3, phy2log_LP=rows)
    (answer,) = evaluate(open_trace(tmp_path), [placement], cluster=cluster)
    summary, layers = answer.summary(), answer.layers()
    assert summary["tokens"] == 50 == len(written.request_T)
    assert summary["bytes_per_token"]["node"] == pytest.approx(answer.node_sends_L.mean() * 150, abs=0.06)
    assert summary["bytes_per_token"]["rank"] == pytest.approx(answer.rank_sends_L.mean() * 150, abs=0.06)
    assert summary["bytes_per_token"]["assignment"] == pytest.approx(answer.remote_assignments_L.mean() * 150, abs=0.06)
    for name in ("rank_imbalance", "node_imbalance", "busiest_in", "busiest_out"):
        values = [layer[name] for layer in layers]
        assert summary[name] == {"mean": pytest.approx(np.mean(values), abs=1e-6), "max": max(values)}
    wanted = 0.0
    for layer in range(3):
        busiest = max(layers[layer]["busiest_in"], layers[layer]["busiest_out"])
        load = 256 * 3 * answer.rank_imbalance_L()[layer]
        wanted += 256 * answer.node_sends_L[layer] * busiest * 150 * 8 / 100e3
        wanted += load * 150 * 8 / 1000e3 + load * 1_000_000 / 50e6 + 40
    assert summary["step_time_us"] == pytest.approx(wanted, abs=0.006)


class TestRefusals:
    """What does not fit together is refused with the reason, not measured wrongly."""

    @pytest.fixture
    def trace(self, tmp_path: Path, write_trace: Any) -> Trace:
        write_trace(tmp_path, num_experts=4, num_layers=1, top_k=2, requests=3)
        return open_trace(tmp_path)

    def _map(self, num_experts: int = 4, layer_ids: tuple[int, ...] = (0,), top_k: int = 2) -> Placement:
        model = Model(name="m", layer_ids=layer_ids, num_experts=num_experts, top_k=top_k)
        rows = np.tile(np.arange(num_experts), (len(layer_ids), 1))
        return Placement(model=model, num_nodes=2, gpus_per_node=1, slots_per_gpu=num_experts // 2, phy2log_LP=rows)

    @pytest.mark.parametrize("change", [{"num_experts": 6}, {"layer_ids": (0, 1)}, {"layer_ids": (1,)}, {"top_k": 3}])
    def test_map_of_another_model(self, trace: Trace, change: dict[str, Any]) -> None:
        with pytest.raises(MapError, match="the map is for"):
            evaluate(trace, [self._map(**change)])

    def test_cluster_of_another_shape(self, trace: Trace) -> None:
        with pytest.raises(MapError, match="the map is for 2 nodes x 1 GPUs x 2 slots"):
            evaluate(trace, [self._map()], cluster=Cluster(num_nodes=1, gpus_per_node=2, slots_per_gpu=2))

    def test_unknown_choice(self, trace: Trace) -> None:
        with pytest.raises(OptionError, match="nearest"):
            evaluate(trace, [self._map()], replica_choice="nearest")

    @pytest.mark.parametrize("homes", [[0, 1], [0, 1, 2], [0, 1, -2]])
    def test_homes(self, trace: Trace, homes: list[int]) -> None:
        with pytest.raises(OptionError, match="home_Q"):
            evaluate(trace, [self._map()], home_Q=np.array(homes))

    def test_bad_ids(self, tmp_path: Path, write_trace: Any) -> None:
        write_trace(tmp_path / "bad", ids_LTK=np.array([[[0, 1], [9, 1]]]), num_experts=4, requests=1)
        with pytest.raises(TraceError, match=r"layer 0, token 1 .*\[9, 1\]"):
            evaluate(open_trace(tmp_path / "bad"), [self._map()])
