"""The cluster: what is left out is filled in sensibly, and what cannot be is refused with what can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement import Cluster
from placement.documents.cluster_yaml import cluster_from_yaml
from placement.errors import ClusterError, InfeasibleError, PlacementError


def shape(cluster: Cluster) -> tuple[int, int, int]:
    return cluster.num_nodes, cluster.gpus_per_node, cluster.slots_per_gpu


@pytest.mark.parametrize(
    ("experts", "nodes", "wanted"),
    [
        (256, 4, (4, 8, 8)),  # DeepSeek-V3
        (384, 8, (8, 8, 6)),
        (32, 4, (4, 8, 1)),  # GPT-OSS-20B: one expert a GPU, none without
        (32, 8, (8, 4, 1)),
        (8, 1, (1, 8, 1)),
        (8, 2, (2, 4, 1)),  # Mixtral
        (8, 4, (4, 2, 1)),
        (8, 8, (8, 1, 1)),
        (6, 2, (2, 1, 3)),  # 2 x 2 GPUs would all get an expert but not evenly; 2 x 1 share evenly
        (1, 1, (1, 1, 1)),
    ],
)
def test_default_gpus(experts: int, nodes: int, wanted: tuple[int, int, int]) -> None:
    """The largest of 8, 4, 2, 1 GPUs a node for which no GPU is left without an expert."""
    assert shape(Cluster.fit(experts, num_nodes=nodes)) == wanted


def test_default_gpus_with_redundant_experts() -> None:
    """Redundant experts fill GPUs too; slots are shared evenly."""
    assert shape(Cluster.fit(32, num_nodes=4, gpus_per_node=2, redundant_experts=8)) == (4, 2, 5)
    assert shape(Cluster.fit(24, num_nodes=4, redundant_experts=8)) == (4, 8, 1)
    assert shape(Cluster.fit(8, num_nodes=2, slots_per_gpu=4)) == (2, 4, 4)
    assert shape(Cluster.fit(8, num_nodes=2, gpus_per_node=2, slots_per_gpu=3)) == (2, 2, 3)


@given(
    experts=st.integers(1, 400),
    nodes=st.integers(1, 64),
    gpus=st.none() | st.integers(1, 9),
    extra=st.none() | st.integers(0, 40),
    slots=st.none() | st.integers(1, 40),
)
def test_fit_is_sound_or_refused(
    experts: int, nodes: int, gpus: int | None, extra: int | None, slots: int | None
) -> None:
    """A fitted cluster has what was asked for, room for every expert, and no rank larger than the model."""
    try:
        cluster = Cluster.fit(
            experts, num_nodes=nodes, gpus_per_node=gpus, redundant_experts=extra, slots_per_gpu=slots
        )
    except PlacementError as error:
        assert error.exit_code in (2, 3)
        assert "\n" not in str(error)
        return
    assert cluster.num_nodes == nodes
    assert gpus in (None, cluster.gpus_per_node)
    assert slots in (None, cluster.slots_per_gpu)
    assert cluster.num_slots >= experts
    assert cluster.slots_per_gpu <= experts
    if slots is None:
        assert cluster.num_slots == experts + (extra or 0)
    if gpus is None:
        assert cluster.gpus_per_node in (8, 4, 2, 1)


@given(experts=st.integers(1, 400), nodes=st.integers(1, 64))
def test_default_gpus_are_the_largest_that_share_evenly(experts: int, nodes: int) -> None:
    """The default takes the largest size that divides the experts; if none does, it is refused, not guessed."""
    sizes = [size for size in (8, 4, 2, 1) if experts % (nodes * size) == 0]
    if sizes:
        assert Cluster.fit(experts, num_nodes=nodes).gpus_per_node == sizes[0]
    else:
        with pytest.raises(InfeasibleError):
            Cluster.fit(experts, num_nodes=nodes)


@pytest.mark.parametrize(
    ("keywords", "error", "told"),
    [
        ({"num_nodes": 0}, ClusterError, "num_nodes=0"),
        ({"num_nodes": -1}, ClusterError, "num_nodes=-1"),
        ({"num_nodes": 65, "gpus_per_node": 1, "slots_per_gpu": 1}, ClusterError, "64"),
        ({"num_nodes": 2, "gpus_per_node": 0}, ClusterError, "gpus_per_node=0"),
        ({"num_nodes": 2, "gpus_per_node": -2}, ClusterError, "gpus_per_node=-2"),
        ({"num_nodes": 2, "slots_per_gpu": 0}, ClusterError, "slots_per_gpu=0"),
        ({"num_nodes": 2, "redundant_experts": -1}, ClusterError, "redundant_experts=-1"),
        ({"num_nodes": 2, "redundant_experts": 2, "slots_per_gpu": 4}, ClusterError, "give one of them"),
        ({"num_nodes": 2, "gpus_per_node": 2, "slots_per_gpu": 7}, InfeasibleError, "--slots-per-gpu 8"),
        ({"num_nodes": 2, "gpus_per_node": 2, "slots_per_gpu": 33}, InfeasibleError, "--slots-per-gpu 32"),
        ({"num_nodes": 3, "gpus_per_node": 1}, InfeasibleError, "--redundant-experts 1"),
        ({"num_nodes": 3, "gpus_per_node": 1, "redundant_experts": 2}, InfeasibleError, "--redundant-experts 1 or 4"),
        ({"num_nodes": 8, "gpus_per_node": 8}, InfeasibleError, "--redundant-experts 32"),
    ],
)
def test_refusals(keywords: dict[str, Any], error: type[Exception], told: str) -> None:
    """Each refusal of 32 experts names the value and what to ask for instead."""
    with pytest.raises(error, match=told):
        Cluster.fit(32, **keywords)


@pytest.mark.parametrize("extra", [1, 4])
def test_what_a_refusal_offers_works(extra: int) -> None:
    """Following the advice of the message leads to a cluster."""
    assert Cluster.fit(32, num_nodes=3, gpus_per_node=1, redundant_experts=extra).num_slots == 32 + extra


@pytest.mark.parametrize(
    "change",
    [
        {"inter_gbps": 0},
        {"inter_gbps": -1.0},
        {"intra_gbps": float("nan")},
        {"gpu_tflops": float("inf")},
        {"expert_bytes": 0},
        {"dispatch_bytes": -1},
        {"combine_bytes": 0},
        {"gpu_speeds": (1.0,)},
        {"gpu_speeds": (1.0, 0.0, 1.0, 1.0)},
        {"gpu_speeds": (1.0, float("nan"), 1.0, 1.0)},
    ],
    ids=str,
)
def test_hardware_that_cannot_be(change: dict[str, Any]) -> None:
    """Bandwidths, bytes and speeds are positive numbers, one speed a rank; the field is named."""
    with pytest.raises(ClusterError, match=next(iter(change))):
        Cluster(**{"num_nodes": 2, "gpus_per_node": 2, "slots_per_gpu": 2} | change)


def test_speeds_are_relative() -> None:
    """Only ratios count: speeds have mean 1."""
    cluster = Cluster(num_nodes=2, gpus_per_node=1, slots_per_gpu=2, gpu_speeds=(30.0, 10.0))
    np.testing.assert_allclose(cluster.speed_G(), [1.5, 0.5])
    np.testing.assert_allclose(Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=2).speed_G(), np.ones(4))


class TestYaml:
    """`cluster.yaml` says the same as the options, and more."""

    def read(self, tmp_path: Path, text: str | bytes, experts: int = 32) -> Cluster:
        path = tmp_path / "cluster.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return cluster_from_yaml(path, experts)

    def test_everything(self, tmp_path: Path) -> None:
        text = """
            num_nodes: 2
            gpus_per_node: 2
            slots_per_gpu: 10
            inter_gbps: 200
            intra_gbps: 1800.5
            gpu_tflops: 100
            gpu_speeds: [1, 1, 0.5, 0.5]
            expert_bytes: 1000
            dispatch_bytes: 10
            combine_bytes: 20
        """
        assert self.read(tmp_path, text) == Cluster(
            num_nodes=2,
            gpus_per_node=2,
            slots_per_gpu=10,
            inter_gbps=200.0,
            intra_gbps=1800.5,
            gpu_tflops=100.0,
            gpu_speeds=(1.0, 1.0, 0.5, 0.5),
            expert_bytes=1000,
            dispatch_bytes=10,
            combine_bytes=20,
        )

    @pytest.mark.parametrize(
        ("text", "wanted"),
        [
            ("num_nodes: 4", (4, 8, 1)),
            ("num_nodes: 4\ngpus_per_node: 2", (4, 2, 4)),
            ("num_nodes: 4\ngpus_per_node: 2\nredundant_experts: 8", (4, 2, 5)),
            ("{num_nodes: 4, slots_per_gpu: 2}", (4, 8, 2)),
        ],
    )
    def test_defaults_are_those_of_fit(self, tmp_path: Path, text: str, wanted: tuple[int, int, int]) -> None:
        assert shape(self.read(tmp_path, text)) == wanted

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("", "cluster.yaml"),
            ("[1, 2]", "cluster.yaml"),
            ("4", "cluster.yaml"),
            ("gpus_per_node: 2", "num_nodes"),
            ("num_nodes: two", "num_nodes"),
            ("num_nodes: 2.5", "num_nodes"),
            ("num_nodes: true", "num_nodes"),
            ("num_nodes: 0", "num_nodes=0"),
            ("num_nodes: 4\nnodes: 3", "nodes.*allowed keys"),
            ("num_nodes: 4\ninter_gbps: fast", "inter_gbps"),
            ("num_nodes: 4\ninter_gbps: -1", "inter_gbps"),
            ("num_nodes: 4\ngpu_speeds: [1, 2]", "gpu_speeds"),
            ("num_nodes: 4\ngpu_speeds: 1", "gpu_speeds"),
            ("num_nodes: [", "not YAML"),
            ("a: b: c", "not YAML"),
            ("!!python/object/apply:os.system ['true']", "not YAML"),
            (b"\xff\xfe\x00\x01\x02", "cluster.yaml"),
            ("num_nodes: 4\n? 1\n: 2", "cluster.yaml"),
            ("num_nodes: 4\nredundant_experts: 1\nslots_per_gpu: 2", "give one of them"),
            ("num_nodes: 4\nexpert_bytes: " + "9" * 400, "expert_bytes"),
            ("num_nodes: 4\ngpu_speeds: [" + "9" * 400 + "]", "gpu_speeds"),
            ("num_nodes: 2024-13-45", "cluster.yaml"),
            ("num_nodes: 4\nwhen: 2024-13-45", "cluster.yaml"),
            ("\t- a", "cluster.yaml"),
            ('num_nodes: 4\n"two\\nlines": 3', "two"),
            ("&a [*a]", "cluster.yaml"),
        ],
    )
    def test_refusals(self, tmp_path: Path, text: str | bytes, told: str) -> None:
        """Whatever is in the file, the answer is one ClusterError line that names the place."""
        with pytest.raises(ClusterError, match=told) as caught:
            self.read(tmp_path, text)
        assert "\n" not in str(caught.value)

    def test_experts_that_do_not_fit(self, tmp_path: Path) -> None:
        with pytest.raises(InfeasibleError, match="--redundant-experts 1"):
            self.read(tmp_path, "num_nodes: 3")

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ClusterError, match="No such file"):
            cluster_from_yaml(tmp_path / "missing.yaml", 32)
        with pytest.raises(ClusterError, match="directory"):
            cluster_from_yaml(tmp_path, 32)
