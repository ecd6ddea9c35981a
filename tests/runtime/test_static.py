"""The layer in fixed shapes gives the sums of the other one where everything fits, and tells where it does not."""

from __future__ import annotations

import pytest
from moe import make_placement, make_tokens, torch

from placement.errors import OptionError, RankError
from placement.runtime import (
    CapacityPolicy,
    Dispatcher,
    GroupedExperts,
    LayerMap,
    Lockstep,
    Mesh,
    MoELayer,
    StaticLayer,
)

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
            torch.testing.assert_close(layer(mine.x, mine.ids, mine.weights)[0], want, rtol=0, atol=bound)
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
        torch.testing.assert_close(layer(mine.x, mine.ids, mine.weights)[0], want, rtol=0, atol=1e-5)

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
            assert torch.isfinite(layer(mine.x, mine.ids, weights)[0]).all()
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
    assert all("1 calls had bad ids, weights or scores" in one[2] for one in messages)


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


@pytest.mark.parametrize(
    "policy",
    [
        CapacityPolicy(mode="drop", gamma=0.8),
        CapacityPolicy(mode="drop", gamma=0.8, spare_decode=False, renormalize=True),
        CapacityPolicy(mode="drop", gamma=0.8, level="device", keep="last", spare_decode=False),
        CapacityPolicy(mode="drop", gamma=0.8, scope="source", keep="random", spare_decode=False),
        CapacityPolicy(mode="drop", gamma=0.8, min_tokens=28),
        CapacityPolicy(mode="drop", gamma=0.8, min_tokens=20, spare_decode=False),
        CapacityPolicy(mode="expanded", gamma=1.0, max_extra=2, spare_decode=False),
        CapacityPolicy(mode="expanded", gamma=1.0),
    ],
    ids=lambda one: f"{one.mode}-{one.level}-{one.scope}-{one.keep}-{one.min_tokens}-{one.spare_decode}",
)
def test_a_policy_drops_the_same(policy: CapacityPolicy) -> None:
    """Ranks with fewer tokens than the shape has, and with none; call by call, and one of tokens that are spared."""
    tokens = make_tokens([TOKENS, 4, 0, TOKENS], EXPERTS, TOP_K)
    tokens[3].ids[5:] = -1

    def program(mesh: Mesh) -> list[int]:
        mine, experts, dropped = tokens[mesh.rank], experts_of(mesh.rank), []
        layer = StaticLayer(
            Dispatcher(mesh, LAYER_MAP), experts, tokens=TOKENS, top_k=TOP_K, dtype=torch.float32, capacity=policy
        )
        other = MoELayer(Dispatcher(mesh, LAYER_MAP), experts, policy)
        for spared in (False, False, mesh.rank == 0):
            given = (mine.x, mine.ids, mine.weights, mine.scores)
            want, stats = other(*given, spared=spared)
            got, fixed = layer(*given, spared=spared)
            torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
            assert torch.equal(fixed.load_P, stats.load_P)
            assert (int(fixed.dropped), int(fixed.extra)) == (int(stats.dropped), int(stats.extra))
            assert fixed.copies == 4 * TOKENS
            dropped.append(int(stats.dropped))
            if not spared or policy.spare_decode:
                layer.check()
        return dropped

    steps = [sum(step) for step in zip(*Lockstep(2, 2).run(program), strict=True)]
    assert all(steps[:2]) == (policy.min_tokens <= 24)


def test_a_limit_makes_the_shapes_small() -> None:
    """Where decode is not spared a slot has as many rows as the policy lets it serve: of 40 tokens here 8, not 40."""
    policy = CapacityPolicy(mode="drop", gamma=0.8, spare_decode=False)
    seen: list[tuple[int, ...]] = []

    class Seen(GroupedExperts):
        def padded(self, rows_SCD: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(rows_SCD.shape))
            return super().padded(rows_SCD)

    def program(mesh: Mesh) -> None:
        held = experts_of(mesh.rank)
        experts = Seen(gate_up=held.gate_up, down=held.down)
        layer = StaticLayer(
            Dispatcher(mesh, LAYER_MAP), experts, tokens=TOKENS, top_k=TOP_K, dtype=torch.float32, capacity=policy
        )
        mine = make_tokens([TOKENS] * 4, EXPERTS, TOP_K, hot=True)[mesh.rank]
        layer(mine.x, mine.ids, mine.weights, mine.scores)
        layer.check()

    Lockstep(2, 2).run(program)
    assert seen == [(4, 8, HIDDEN)] * 4


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"hops": "hierarchical"}, "hops='hierarchical' needs counts on the host"),
        (
            {"choice": "min-nodes-balanced"},
            "'min-nodes-balanced' on 2 nodes waits for the host; choose one of",
        ),
        ({"choice": "min-nodes-step"}, "'min-nodes-step' on 2 nodes waits for the host"),
        ({"capacity": CapacityPolicy(mode="drop", classes={0: 0.5})}, "classes are told by marks"),
        ({"tokens": 0}, "tokens=0 must be at least 1"),
    ],
)
def test_what_waits_for_the_host_is_refused(how: dict[str, object], words: str) -> None:
    """On a CPU too, where a rehearsal tells it; more tokens than the shape has are refused in a call."""
    ours = {name: how[name] for name in ("tokens", "capacity") if name in how}
    theirs = {name: value for name, value in how.items() if name not in ours}

    def program(mesh: Mesh, theirs: dict[str, object], ours: dict[str, object]) -> None:
        given = {"tokens": TOKENS, "top_k": TOP_K, "dtype": torch.float32} | ours
        layer = StaticLayer(Dispatcher(mesh, LAYER_MAP, **theirs), experts_of(mesh.rank), **given)
        (mine,) = make_tokens([TOKENS + 1], EXPERTS, TOP_K)
        layer(mine.x, mine.ids, mine.weights)

    with pytest.raises(OptionError, match=words):
        Lockstep(2, 2).run(lambda mesh: program(mesh, theirs, ours))
    with pytest.raises(OptionError, match=f"has {TOKENS + 1} tokens and the layer is made for tokens={TOKENS}"):
        Lockstep(2, 2).run(lambda mesh: program(mesh, {}, {}))


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
            y, _ = layer(*given)
        for inputs in (second, first):
            for to, new in zip(given, inputs, strict=True):
                to.copy_(new)
            graph.replay()
            torch.testing.assert_close(y, other(*inputs)[0], rtol=0, atol=1e-4)
        layer.check()

    Lockstep(1, 1).run(program)
