"""The whole layer on a GPU gives what it gives on a CPU. All ranks share the one GPU, in lockstep."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from moe import make_placement, make_tokens, torch

from placement.runtime import (
    CapacityPolicy,
    Dispatcher,
    GroupedExperts,
    LayerMap,
    Lockstep,
    Mesh,
    MoELayer,
)

EXPERTS, TOP_K, HIDDEN, INNER = 12, 3, 64, 32
PLACEMENT = make_placement(2, 2, 4, EXPERTS, TOP_K)
LAYER_MAP = LayerMap.of(PLACEMENT, 0)
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]


def outputs(
    device: str, dtype: torch.dtype, hops: str, choice: str, mode: str, *, fp8: bool = False
) -> list[torch.Tensor]:
    """Of every rank, on the CPU in fp32."""
    tokens = make_tokens([9, 0, 14, 5], EXPERTS, TOP_K, hidden=HIDDEN, dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    gate_up = (torch.randn(EXPERTS, HIDDEN, 2 * INNER, generator=generator) / 8).to(device, dtype)
    down = (torch.randn(EXPERTS, INNER, HIDDEN, generator=generator) / 6).to(device, dtype)

    def program(mesh: Mesh) -> torch.Tensor:
        mine = tokens[mesh.rank]
        held = [LAYER_MAP.logical_P[p] for p in LAYER_MAP.slots_of_rank(mesh.rank)]
        dispatcher = Dispatcher(mesh, LAYER_MAP, hops=hops, choice=choice, fp8=fp8, device=device)
        policy = CapacityPolicy(mode=mode, gamma=1.0, max_extra=2)
        layer = MoELayer(dispatcher, GroupedExperts(gate_up=gate_up[held], down=down[held]), policy)
        given = (one.to(device) for one in (mine.x, mine.ids, mine.weights, mine.scores))
        y, _ = layer(*given)
        assert y.device.type == device
        return y.float().cpu()

    return Lockstep(2, 2).run(program)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("hops", ["flat", "hierarchical"])
@pytest.mark.parametrize(
    ("choice", "mode"), [("min-nodes", "none"), ("min-nodes-balanced", "drop"), ("local-first", "expanded")]
)
def test_same_on_every_device(device: str, dtype: torch.dtype, bound: float, hops: str, choice: str, mode: str) -> None:
    """And twice the same bits."""
    first, second = (outputs(device, dtype, hops, choice, mode) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for got, want in zip(first, outputs("cpu", torch.float32, hops, choice, mode), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=bound)


@pytest.mark.parametrize("device", DEVICES)
def test_fp8_on_every_device(device: str) -> None:
    """Scales and bytes travel alike."""
    for got, want in zip(
        outputs(device, torch.bfloat16, "flat", "min-nodes", "none", fp8=True),
        outputs("cpu", torch.float32, "flat", "min-nodes", "none"),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=0.1)


PROGRAM = """
import sys, torch
import torch.distributed as dist
from placement import Model, Placement
from placement.runtime import Dispatcher, LayerMap, torch_mesh
device, backend = sys.argv[1:3]
dist.init_process_group(backend, init_method=f"file://{sys.argv[3]}", rank=0, world_size=1)
model = Model(name="m", layer_ids=(0,), num_experts=6, top_k=2)
row = torch.randperm(6).numpy()
placement = Placement(model=model, num_nodes=1, gpus_per_node=1, slots_per_gpu=6, phy2log_LP=row[None])
mesh, layer_map = torch_mesh(1, 1, device=device, check=True), LayerMap.of(placement, 0)
weights, ids = torch.rand(9, 6, device=device).topk(2)
x = torch.randn(9, 32, device=device)
for hops in ("flat", "hierarchical"):
    dispatcher = Dispatcher(mesh, layer_map, hops=hops, device=device)
    rows, counts, handle = dispatcher.dispatch(x, ids, weights)
    error = (dispatcher.combine(rows, handle) - x * weights.sum(dim=1, keepdim=True)).abs().max().item()
    assert counts.sum().item() == 18 and error < 1e-5, error
dist.destroy_process_group()  # its threads end before the process does
"""


@pytest.mark.parametrize("device", DEVICES)
def test_a_process_of_its_own(device: str, tmp_path: Path) -> None:
    """NCCL with one rank, since it does not let two share a GPU; gloo on CPUs."""
    backend = "nccl" if device == "cuda" else "gloo"
    command = [sys.executable, "-c", PROGRAM, device, backend, str(tmp_path / "store")]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    )
    assert result.returncode == 0, result.stderr
