"""The layer in fixed shapes gives the sums of the other one where everything fits, and tells where it does not."""

from __future__ import annotations

import pytest
from moe import make_placement, make_tokens, torch

from placement.errors import RankError
from placement.runtime import Dispatcher, GroupedExperts, LayerMap, Lockstep, Mesh, MoELayer, StaticLayer

EXPERTS, TOP_K, HIDDEN, TOKENS = 12, 3, 16, 10
PLACEMENT = make_placement(2, 2, 4, EXPERTS, TOP_K)
LAYER_MAP = LayerMap.of(PLACEMENT, 0)


def experts_of(rank: int, dtype: torch.dtype = torch.float32, layer_map: LayerMap = LAYER_MAP) -> GroupedExperts:
    """A copy of an expert has its weights, on whatever rank."""
    generator = torch.Generator().manual_seed(7)
    gate_up, down = (torch.randn(EXPERTS, *shape, generator=generator) / 4 for shape in ((HIDDEN, 16), (8, HIDDEN)))
    held = [layer_map.logical_P[p] for p in layer_map.slots_of_rank(rank)]
    return GroupedExperts(gate_up=gate_up[held].to(dtype), down=down[held].to(dtype))


@pytest.mark.parametrize("hot", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_same_sums(hot: bool, dtype: torch.dtype, bound: float) -> None:
    """Over several calls, with rows that are filled up with ids of -1."""
    tokens = make_tokens([TOKENS] * 4, EXPERTS, TOP_K, hot=hot, dtype=dtype)
    tokens[1].ids[4:] = -1
    tokens[2].ids[:] = -1

    def program(mesh: Mesh) -> None:
        mine, experts = tokens[mesh.rank], experts_of(mesh.rank, dtype)
        layer = StaticLayer(Dispatcher(mesh, LAYER_MAP), experts, tokens=TOKENS, top_k=TOP_K, dtype=dtype)
        other = MoELayer(Dispatcher(mesh, LAYER_MAP), experts)
        for _ in range(3):
            want, _ = other(mine.x, mine.ids, mine.weights)
            torch.testing.assert_close(layer(mine.x, mine.ids, mine.weights), want, rtol=0, atol=bound)
        layer.check()

    Lockstep(2, 2).run(program)


def test_no_row_is_blank_and_some_places_are() -> None:
    """One rank gets exactly the rows that it has room for; the slots' unused places add nothing to any of them."""
    layer_map = LayerMap.of(make_placement(1, 1, EXPERTS, EXPERTS, TOP_K), 0)
    (mine,) = make_tokens([TOKENS], EXPERTS, TOP_K)
    experts = experts_of(0, layer_map=layer_map)

    def program(mesh: Mesh) -> None:
        dispatcher = Dispatcher(mesh, layer_map)
        layer = StaticLayer(dispatcher, experts, tokens=TOKENS, top_k=TOP_K, dtype=torch.float32)
        want, _ = MoELayer(dispatcher, experts)(mine.x, mine.ids, mine.weights)
        torch.testing.assert_close(layer(mine.x, mine.ids, mine.weights), want, rtol=0, atol=1e-5)

    Lockstep(1, 1).run(program)


def test_what_does_not_fit_is_told() -> None:
    """Rows for a rank, rows of a slot, and bad weights; a sum without them is still finite."""
    tokens = make_tokens([TOKENS] * 4, EXPERTS, TOP_K, hot=True)

    def program(mesh: Mesh) -> list[str]:
        mine, out = tokens[mesh.rank], []
        for room, weights in (
            ({"rows_per_rank": 2}, mine.weights),
            ({"rows_per_slot": 3}, mine.weights),
            ({}, mine.weights * float("nan")),
        ):
            dispatcher = Dispatcher(mesh, LAYER_MAP)
            layer = StaticLayer(
                dispatcher, experts_of(mesh.rank), tokens=TOKENS, top_k=TOP_K, dtype=torch.float32, **room
            )
            assert torch.isfinite(layer(mine.x, mine.ids, weights)).all()
            try:
                layer.check()
                out.append("")
            except RankError as error:
                out.append(str(error))
            layer.check()  # told once
        return out

    messages = Lockstep(2, 2).run(program)
    assert all("beyond rows_per_rank=2" in one[0] and " 0 copies" not in one[0] for one in messages)
    assert any("beyond rows_per_slot=3" in one[1] and " 0 assignments" not in one[1] for one in messages)
    assert all("1 calls had bad ids or weights" in one[2] for one in messages)


def test_ranks_that_disagree() -> None:
    """Told when the layer is made, since no header travels with the rows."""

    def program(mesh: Mesh) -> None:
        rows = 5 if mesh.rank == 3 else 6
        StaticLayer(
            Dispatcher(mesh, LAYER_MAP),
            experts_of(mesh.rank),
            tokens=TOKENS,
            top_k=TOP_K,
            dtype=torch.float32,
            rows_per_rank=rows,
        )

    outcomes = Lockstep(2, 2).try_run(program)
    assert all(isinstance(one, RankError) and one.ranks == (3,) for one in outcomes), outcomes


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_cuda_graph_captures_it() -> None:
    """One rank; the replayed graph gives the sums of new tokens."""
    placement = make_placement(1, 1, EXPERTS, EXPERTS, TOP_K)
    layer_map = LayerMap.of(placement, 0)
    tokens = make_tokens([TOKENS, TOKENS], EXPERTS, TOP_K)

    def program(mesh: Mesh) -> None:
        generator = torch.Generator().manual_seed(7)
        draw = lambda *shape: (torch.randn(EXPERTS, *shape, generator=generator) / 4).cuda()  # noqa: E731
        experts = GroupedExperts(gate_up=draw(HIDDEN, 16), down=draw(8, HIDDEN))
        layer = StaticLayer(
            Dispatcher(mesh, layer_map, device="cuda"), experts, tokens=TOKENS, top_k=TOP_K, dtype=torch.float32
        )
        other = MoELayer(Dispatcher(mesh, layer_map, device="cuda"), experts)
        first, second = ([one.x.cuda(), one.ids.cuda(), one.weights.cuda()] for one in tokens)
        given = [tensor.clone() for tensor in first]
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            layer(*given)  # warms up
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(*given)
        for inputs in (second, first):
            for to, new in zip(given, inputs, strict=True):
                to.copy_(new)
            graph.replay()
            torch.testing.assert_close(y, other(*inputs)[0], rtol=0, atol=1e-4)
        layer.check()

    Lockstep(1, 1).run(program)
