"""Dispatch and combine on every shape of group give what a dense layer gives."""

from __future__ import annotations

import pytest
from moe import Tokens, dense, make_matrices, make_placement, make_tokens, run_experts, torch

from placement import Placement
from placement.runtime import Dispatcher, LayerMap, Lockstep, Mesh

SHAPES = [(1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (2, 4)]


def outputs(placement: Placement, tokens: list[Tokens], **options: object) -> list[torch.Tensor]:
    """What every rank gets."""
    matrices = make_matrices(placement.model.num_experts)
    layer_map = LayerMap.of(placement, 0)

    def program(mesh: Mesh) -> torch.Tensor:
        mine = tokens[mesh.rank]
        dispatcher = Dispatcher(mesh, layer_map, **options)
        rows, counts, handle = dispatcher.dispatch(mine.x, mine.ids, mine.weights)
        held = [layer_map.logical_P[p] for p in layer_map.slots_of_rank(mesh.rank)]
        return dispatcher.combine(run_experts(rows, counts, held, matrices), handle)

    return Lockstep(placement.num_nodes, placement.gpus_per_node).run(program)


def sizes_of(case: str, num_ranks: int) -> list[int]:
    return {
        "even": [12] * num_ranks,
        "one empty rank": [0, *range(3, 2 + num_ranks)],
        "no tokens": [0] * num_ranks,
        "one token": [1, *[0] * (num_ranks - 1)],
    }[case]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("hops", ["flat", "hierarchical"])
@pytest.mark.parametrize("case", ["even", "one empty rank", "no tokens", "one token"])
def test_output_is_that_of_a_dense_layer(shape: tuple[int, int], hops: str, case: str) -> None:
    """2, 4 and 8 ranks, with replicas, fp32."""
    num_ranks = shape[0] * shape[1]
    placement = make_placement(*shape, 16 // num_ranks + 1, 12, 3)
    tokens = make_tokens(sizes_of(case, num_ranks), 12, 3)
    for y, mine in zip(outputs(placement, tokens, hops=hops), tokens, strict=True):
        torch.testing.assert_close(y, dense(mine, make_matrices(12)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("choice", ["min-nodes", "min-nodes-balanced", "local-first", "uniform"])
@pytest.mark.parametrize("hops", ["flat", "hierarchical"])
@pytest.mark.parametrize("wasted", [False, True])
def test_every_choice_and_a_hot_expert(choice: str, hops: str, wasted: bool) -> None:
    """All tokens visit one expert; the sum does not depend on which copy serves, or on slots that none uses."""
    placement = make_placement(2, 2, 4, 12, 3, wasted=wasted)
    tokens = make_tokens([9, 0, 14, 5], 12, 3, hot=True)
    for y, mine in zip(outputs(placement, tokens, hops=hops, choice=choice), tokens, strict=True):
        torch.testing.assert_close(y, dense(mine, make_matrices(12)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("hops", ["flat", "hierarchical"])
@pytest.mark.parametrize(
    ("dtype", "fp8", "bound"),
    [(torch.bfloat16, False, 2e-2), (torch.float32, True, 0.15), (torch.bfloat16, True, 0.15)],
)
@pytest.mark.parametrize("shape", [(1, 2), (2, 2), (4, 2)])
def test_short_types(shape: tuple[int, int], hops: str, dtype: torch.dtype, fp8: bool, bound: float) -> None:
    """bf16, and fp8 on the way to the experts, whose three bits of mantissa are felt."""
    placement = make_placement(*shape, 16 // (shape[0] * shape[1]), 12, 3)
    tokens = make_tokens([9, 0, 14, 5, 3, 8, 0, 1][: shape[0] * shape[1]], 12, 3, dtype=dtype)
    for y, mine in zip(outputs(placement, tokens, hops=hops, fp8=fp8), tokens, strict=True):
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), dense(mine, make_matrices(12)), rtol=0, atol=bound)


def test_ids_of_minus_one_are_nobody() -> None:
    """A token may have fewer experts than K, or none."""
    placement = make_placement(2, 2, 4, 12, 3)
    tokens = make_tokens([6] * 4, 12, 3)
    tokens[0].ids[0, 1] = -1
    tokens[2].ids[3] = -1
    results = outputs(placement, tokens, hops="hierarchical")
    for y, mine in zip(results, tokens, strict=True):
        torch.testing.assert_close(y, dense(mine, make_matrices(12)), rtol=0, atol=1e-5)
    assert not results[2][3].any()


@pytest.mark.parametrize("hops", ["flat", "hierarchical"])
def test_twice_the_same_bits(hops: str) -> None:
    """Nothing depends on timing."""
    placement = make_placement(2, 2, 4, 12, 3)
    tokens = make_tokens([30] * 4, 12, 3)
    first, second = (outputs(placement, tokens, hops=hops) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
