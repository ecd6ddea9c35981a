"""How many operations a layer launches on a GPU, and that nothing but its hops waits for the device."""

from __future__ import annotations

from typing import Any

import pytest
from hot_path import Counted, as_on_a_gpu, counting
from moe import make_placement, make_tokens, torch

from placement.runtime import CapacityPolicy, Dispatcher, GroupedExperts, LayerMap, Lockstep, Mesh, MoELayer
from placement.runtime.experts import grouped_mm

assert as_on_a_gpu  # a fixture
EXPERTS, TOP_K, HIDDEN, INNER = 16, 4, 32, 16
NONE, DROP = CapacityPolicy(), CapacityPolicy(mode="drop", gamma=1.0)
EXPANDED = CapacityPolicy(mode="expanded", gamma=1.0, max_extra=2, renormalize=True)
BY_CLASS = CapacityPolicy(mode="drop", gamma=1.0, classes={0: 0.5}, level="device")
OWN = CapacityPolicy(mode="drop", gamma=1.0, scope="source", keep="random")


def outputs(slots: int, hops: str, policy: CapacityPolicy, choice: str = "min-nodes") -> list[tuple[Any, Counted]]:
    """Every rank's sums of the third call of a layer, 2 x 2 ranks and top-4 of 16 experts in bf16, and its counts."""
    layer_map = LayerMap.of(make_placement(2, 2, slots, EXPERTS, TOP_K), 0)
    tokens = make_tokens([20, 7, 0, 11], EXPERTS, TOP_K, hidden=HIDDEN, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    gate_up = torch.randn(EXPERTS, 2 * INNER, HIDDEN, generator=generator).bfloat16().mT / 4
    down = torch.randn(EXPERTS, HIDDEN, INNER, generator=generator).bfloat16().mT / 4

    def program(mesh: Mesh) -> Any:
        mine = tokens[mesh.rank]
        given = (mine.x, mine.ids, mine.weights, None if policy.mode == "none" else mine.scores)
        held = [layer_map.logical_P[slot] for slot in layer_map.slots_of_rank(mesh.rank)]
        experts = GroupedExperts(gate_up=gate_up[held], down=down[held])
        layer = MoELayer(Dispatcher(mesh, layer_map, hops=hops, choice=choice), experts, policy)
        for _ in range(2):
            layer(*given)
        if mesh.rank:
            return layer(*given)[0], None
        with counting() as counted:
            y, _ = layer(*given)
        return y, counted

    return Lockstep(2, 2).run(program)


@pytest.mark.parametrize(
    ("slots", "hops", "policy", "most"),
    [
        (4, "flat", NONE, 60),  # 56
        (5, "flat", NONE, 62),  # 57
        (4, "hierarchical", NONE, 80),
        (5, "hierarchical", NONE, 82),
        (5, "flat", DROP, 120),  # 111
        (5, "hierarchical", DROP, 140),
        (5, "flat", EXPANDED, 150),
        (5, "flat", BY_CLASS, 150),
        (5, "flat", OWN, 135),
    ],
    ids=lambda one: getattr(one, "mode", None),
)
def test_operations_of_a_layer(
    as_on_a_gpu: None, slots: int, hops: str, policy: CapacityPolicy, most: int, record_property: Any
) -> None:
    """Few launches; the host waits once a hop, and once for a decision of all ranks."""
    counted = outputs(slots, hops, policy)[0][1]
    record_property("operations, waits", (counted.total, counted.launched["host"]))
    assert not counted.waits
    assert counted.total <= most, counted.launched
    decides = policy.mode != "none" and policy.scope == "global"
    assert counted.launched["host"] == (1 if hops == "flat" else 2) + decides


def test_waits_are_seen(as_on_a_gpu: None) -> None:
    """Protects the test above: a choice that the host draws brings the ids there; else a kernel chooses replicas."""
    assert outputs(5, "flat", NONE, "min-nodes-balanced")[0][1].waits["numpy"]
    assert outputs(5, "flat", NONE)[0][1].launched["choice kernel"] == 1
    with counting() as counted:
        torch.arange(5)[torch.arange(5) > 2].sum().item()
    assert counted.waits == {"index by a mask": 1, "item": 1, "_local_scalar_dense": 1}


@pytest.mark.parametrize("choice", ["min-nodes", "min-nodes-balanced", "vllm-hash", "sglang-static", "ascend-rank"])
def test_one_copy_leaves_nothing_to_choose(as_on_a_gpu: None, choice: str) -> None:
    """Without replicas no rule launches more than a look into a table, or brings ids to the host."""
    counted = outputs(4, "flat", NONE, choice)[0][1]
    assert not counted.waits
    assert counted.total <= 60


def test_no_rows_need_no_counts(as_on_a_gpu: None) -> None:
    """A rank that nothing came to does not ask the device how many rows each slot has."""
    with counting() as counted:
        out = grouped_mm(torch.zeros(0, HIDDEN), torch.zeros(3, HIDDEN, INNER), torch.zeros(3, dtype=torch.int64))
    assert out.shape == (0, INNER)
    assert not counted.waits


@pytest.mark.parametrize("hops", ["flat", "hierarchical"])
@pytest.mark.parametrize("policy", [NONE, DROP, EXPANDED, BY_CLASS, OWN], ids=lambda one: f"{one.mode}-{one.scope}")
def test_sums_are_those_of_a_cpu(hops: str, policy: CapacityPolicy, request: pytest.FixtureRequest) -> None:
    """What a GPU runs drops the same and sums the same, but for the order of sums."""
    on_cpu = [y for y, _ in outputs(5, hops, policy)]
    request.getfixturevalue("as_on_a_gpu")
    for (y, _), want in zip(outputs(5, hops, policy), on_cpu, strict=True):
        torch.testing.assert_close(y, want, rtol=0, atol=2e-2)
    assert sum(float(want.abs().sum()) for want in on_cpu) > 1
