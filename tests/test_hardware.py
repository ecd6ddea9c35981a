"""`placement cluster`: a cluster file of known hardware, and the sizes that a model's config.json says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from placement.core.cluster import Cluster
from placement.core.hardware import HARDWARE
from placement.cost.step_time import balance_in_sends
from placement.documents.cluster_yaml import cluster_from_yaml
from placement.documents.model_config import read_model_config
from placement.documents.parts import ClusterDetail
from placement.errors import ClusterError, InputError

DEEPSEEK = {"hidden_size": 7168, "moe_intermediate_size": 2048, "n_routed_experts": 256, "num_experts_per_tok": 8}
GPT_OSS = {
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "quantization_config": {"quant_method": "mxfp4"},
}


@pytest.fixture
def config(tmp_path: Path) -> Any:
    def write(document: Any) -> Path:
        path = tmp_path / "config.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return path

    return write


def test_the_sizes_of_deepseek_v3_are_the_defaults_of_a_cluster(config: Any) -> None:
    """What DeepEP's sources say of a token, and three matrices of an expert, in bf16."""
    sizes, plain = read_model_config(config(DEEPSEEK)), Cluster(num_nodes=1, gpus_per_node=1, slots_per_gpu=1)
    assert (sizes.num_experts, sizes.top_k) == (256, 8)
    for name in ("expert_bytes", "weight_bits", "dispatch_bytes", "combine_bytes"):
        assert getattr(sizes, name) == getattr(plain, name), name


@pytest.mark.parametrize(
    ("change", "bits"),
    [
        ({}, 16),
        ({"dtype": "float32"}, 32),
        ({"torch_dtype": "float16"}, 16),
        ({"quantization_config": {"quant_method": "fp8"}}, 8),
        ({"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}, 4.5),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, 4),
    ],
)
def test_weights_take_the_bits_that_the_configuration_says(change: dict[str, Any], bits: float, config: Any) -> None:
    sizes = read_model_config(config(DEEPSEEK | change))
    assert sizes.weight_bits == bits and sizes.expert_bytes == 3 * 7168 * 2048 * bits / 8


def test_the_text_model_of_a_larger_one_counts_and_so_does_a_folder(config: Any) -> None:
    path = config({"hidden_size": 1, "text_config": GPT_OSS})
    sizes = read_model_config(path.parent)
    assert (sizes.hidden, sizes.width, sizes.num_experts, sizes.weight_bits) == (2880, 2880, 32, 4.25)


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ("{", "is not JSON"),
        ([], "holds no object"),
        ({"hidden_size": 8}, "has no n_routed_experts or num_experts"),
        (DEEPSEEK | {"hidden_size": "wide"}, "hidden_size=wide must be a whole number"),
        (DEEPSEEK | {"hidden_size": True}, "hidden_size=True must be a whole number"),
        (DEEPSEEK | {"dtype": "int3"}, "dtype 'int3' is unknown"),
        (DEEPSEEK | {"quantization_config": {"quant_method": "new"}}, "quantization 'new'"),
    ],
)
def test_a_configuration_that_does_not_say_enough_is_refused(document: Any, told: str, config: Any) -> None:
    with pytest.raises(InputError, match=told):
        read_model_config(config(document))


@pytest.mark.parametrize("name", HARDWARE)
def test_the_file_is_a_cluster_that_solves_take(name: str, config: Any, tmp_path: Path, run_cli: Any) -> None:
    path = tmp_path / "c.yaml"
    done = run_cli("cluster", name, "--nodes", 1, "--model", config(DEEPSEEK | {"n_routed_experts": 144}), "-o", path)
    assert done.code == 0 and done.stdout.startswith(f"wrote {path}:\nnum_nodes: 1\n")
    cluster, one = cluster_from_yaml(path, 144), HARDWARE[name]
    assert (cluster.memory_gbps, cluster.latency_us) == (one.memory_gbps, 40)
    assert (cluster.inter_gbps, cluster.intra_gbps, cluster.gpu_tflops) == (
        one.inter_gbps,
        one.intra_gbps,
        one.gpu_tflops,
    )
    assert (cluster.expert_bytes, cluster.num_ranks) == (88_080_384, one.gpus_per_node)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("h300", "--nodes", 1), 2, "hardware 'h300' is unknown; choose one of h100"),
        (("h100", "--nodes", 65), 2, "num_nodes=65"),
        (("h100", "--nodes", 0), 2, "num_nodes=0"),
        (("h100", "--nodes", 1, "--gpus-per-node", 0), 2, "gpus_per_node=0"),
        (("h100", "--nodes", 1, "--redundant-experts", -3), 2, "--redundant-experts -3 must be 0 or more"),
        (("h100", "--nodes", 1, "--redundant-experts", 3), 3, "3"),
        (("h100", "--nodes", 1, "--model", "nowhere.json"), 2, "cannot read nowhere.json"),
    ],
)
def test_what_is_no_cluster_leaves_no_file(
    words: tuple[Any, ...], code: int, told: str, config: Any, tmp_path: Path, run_cli: Any
) -> None:
    path, model = tmp_path / "c.yaml", () if words[2] == 65 or "--model" in words else ("--model", config(DEEPSEEK))
    refused = run_cli("cluster", *words, *model, "-o", path)
    assert refused.code == code and told in refused.stderr and not path.exists()


def test_operations_do_not_depend_on_how_weights_are_stored() -> None:
    """An expert in fp8 has half the bytes, and as many operations."""
    shape = {"num_nodes": 2, "gpus_per_node": 2, "slots_per_gpu": 2}
    bf16 = Cluster(**shape, expert_bytes=1 << 20)
    fp8 = Cluster(**shape, expert_bytes=1 << 19, weight_bits=8)
    assert balance_in_sends(bf16, 4.0) == balance_in_sends(fp8, 4.0)


def test_a_document_of_before_has_the_speeds_of_the_default() -> None:
    """Placement files that lack what the step time has learnt since are read, and judged by the cluster's defaults."""
    cluster = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=2, inter_gbps=100.0)
    document = ClusterDetail.of(cluster).model_dump()
    for key in ("weight_bits", "memory_gbps", "copy_us", "latency_us"):
        del document[key]
    assert ClusterDetail.model_validate(document).cluster() == cluster


@pytest.mark.parametrize(("key", "value"), [("memory_gbps", 0.0), ("latency_us", -1.0), ("copy_us", float("nan"))])
def test_a_speed_that_is_none_is_refused(key: str, value: float) -> None:
    with pytest.raises(ClusterError, match=f"{key}="):
        Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=2, **{key: value})  # type: ignore[arg-type]
