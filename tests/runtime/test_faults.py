"""What a rank does wrong becomes an error on every rank that names it; never a hang, never a wrong sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

import pytest
from moe import make_placement, make_tokens, torch

from placement.errors import MapError, OptionError, RankError
from placement.runtime import CapacityPolicy, Dispatcher, LayerMap, Lockstep, Mesh, MoELayer
from placement.runtime.header import FIELDS, LAYER, MAP, fault_of, judge

HOPS = pytest.mark.parametrize("hops", ["flat", "hierarchical"])
PLACEMENT = make_placement(2, 2, 4, 12, 3, layers=2)
SHAPE = (2, 2)


def errors_of(program: Callable[[Mesh], object]) -> list[str]:
    """The message on every rank."""
    outcomes = Lockstep(*SHAPE).try_run(program)
    assert all(isinstance(one, RankError) for one in outcomes), outcomes
    return [str(one) for one in outcomes]


@HOPS
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_no_number(hops: str, bad: float) -> None:
    """All ranks raise at the same point, and go on together afterwards."""
    tokens = make_tokens([5] * 4, 12, 3)
    poisoned = tokens[3].weights.clone()
    poisoned[2, 1] = bad

    def program(mesh: Mesh) -> None:
        mine = tokens[mesh.rank]
        dispatcher = Dispatcher(mesh, LayerMap.of(PLACEMENT, 0), hops=hops)
        with pytest.raises(RankError, match=r"rank 3 has weights or scores that are not finite"):
            dispatcher.dispatch(mine.x, mine.ids, poisoned if mesh.rank == 3 else mine.weights)
        rows, _, handle = dispatcher.dispatch(mine.x, mine.ids, mine.weights)
        dispatcher.combine(rows, handle)

    Lockstep(*SHAPE).run(program)


@HOPS
@pytest.mark.parametrize("bad", [12, -2, 1 << 40])
def test_an_expert_that_does_not_exist(hops: str, bad: int) -> None:
    tokens = make_tokens([5] * 4, 12, 3)
    tokens[1].ids[0, 0] = bad

    def program(mesh: Mesh) -> None:
        mine = tokens[mesh.rank]
        Dispatcher(mesh, LayerMap.of(PLACEMENT, 0), hops=hops).dispatch(mine.x, mine.ids, mine.weights)

    assert all("rank 1 has expert ids that the model does not have; ids from 0 to 11" in m for m in errors_of(program))


@HOPS
@pytest.mark.parametrize("with_other", [(3,), (0,), (0, 2), (0, 1), (0, 1, 3)])
def test_maps_that_differ(with_other: tuple[int, ...], hops: str) -> None:
    """Ranks that have loaded another map are named where they are fewer, also where every hop sees but a pair of ranks;
    else both sides are. All go on afterwards."""
    other = make_placement(2, 2, 4, 12, 3, layers=2, seed=1)
    maps = [LayerMap.of(other if rank in with_other else PLACEMENT, 0) for rank in range(4)]

    def program(mesh: Mesh) -> tuple[str, tuple[int, ...]]:
        mine = make_tokens([5] * 4, 12, 3)[mesh.rank]
        with pytest.raises(RankError) as raised:
            Dispatcher(mesh, maps[mesh.rank], hops=hops).dispatch(mine.x, mine.ids, mine.weights)
        Dispatcher(mesh, LayerMap.of(PLACEMENT, 1), hops=hops).dispatch(mine.x, mine.ids, mine.weights)
        return str(raised.value), raised.value.ranks

    fewer = [rank for rank in range(4) if (rank in with_other) == (len(with_other) <= 2)]
    for message, ranks in Lockstep(*SHAPE).run(program):
        assert set(ranks) == (set(range(4)) if len(with_other) == 2 else set(fewer))
        if len(fewer) == 1:
            assert f"rank {fewer[0]} uses another placement map than the others (rank " in message
        assert f"rank {', '.join(map(str, with_other))}: map {maps[with_other[0]].version:016x}" in message


@HOPS
def test_both_of_a_pair_are_named(hops: str) -> None:
    """Of two ranks with different maps, or policies, nobody knows who is right."""
    maps = [LayerMap.of(make_placement(2, 1, 6, 12, 3, seed=seed), 0) for seed in (0, 1)]

    def program(mesh: Mesh, ways: str) -> None:
        mine = make_tokens([5] * 2, 12, 3)[mesh.rank]
        policy = CapacityPolicy(mode="drop", gamma=1.0 + mesh.rank * (ways == "policies"))
        layer_map = maps[mesh.rank * (ways == "maps")]
        MoELayer(Dispatcher(mesh, layer_map, hops=hops), lambda rows, counts: rows, policy)(
            mine.x, mine.ids, mine.weights
        )

    for ways, words in (("maps", "rank 0 or rank 1 uses another"), ("policies", "rank 0 or rank 1 has tokens of")):
        outcomes = Lockstep(2, 1).try_run(lambda mesh, ways=ways: program(mesh, ways))
        assert all(isinstance(one, RankError) and words in str(one) and one.ranks == (0, 1) for one in outcomes)


@HOPS
def test_a_rank_that_skips_a_layer_and_goes_on(hops: str) -> None:
    """It meets the others in the next exchange, whose header does not fit."""

    def program(mesh: Mesh) -> None:
        mine = make_tokens([5] * 4, 12, 3)[mesh.rank]
        for layer in (1,) if mesh.rank == 2 else (0, 1):
            dispatcher = Dispatcher(mesh, LayerMap.of(PLACEMENT, layer), hops=hops)
            rows, _, handle = dispatcher.dispatch(mine.x, mine.ids, mine.weights)
            dispatcher.combine(rows, handle)

    messages = errors_of(program)
    words = "rank 2 is at another layer or step than the others (rank 0, 1, 3: layer 0; rank 2: layer 1)"
    assert all(words in message for message in messages)


@HOPS
def test_a_rank_that_stops_early(hops: str) -> None:
    """Lockstep notices at once that nobody can go on."""

    def program(mesh: Mesh) -> None:
        mine = make_tokens([5] * 4, 12, 3)[mesh.rank]
        if mesh.rank == 2:
            return
        Dispatcher(mesh, LayerMap.of(PLACEMENT, 0), hops=hops).dispatch(mine.x, mine.ids, mine.weights)

    outcomes = Lockstep(*SHAPE).try_run(program)
    assert outcomes[2] is None
    for rank in (0, 1, 3):
        assert isinstance(outcomes[rank], RankError)
        assert outcomes[rank].ranks == (2,)


@HOPS
def test_tokens_of_another_make(hops: str) -> None:
    """Another hidden size on one rank is told to all before any row moves."""

    def program(mesh: Mesh) -> None:
        mine = make_tokens([5] * 4, 12, 3, hidden=32 if mesh.rank == 0 else 16)[mesh.rank]
        Dispatcher(mesh, LayerMap.of(PLACEMENT, 0), hops=hops).dispatch(mine.x, mine.ids, mine.weights)

    assert all("rank 0 has tokens of another size, type, top-k or" in message for message in errors_of(program))


def test_the_majority_is_right() -> None:
    """Who differs is named; of equals one on each side; told faults come before found ones."""
    header = dict.fromkeys(FIELDS, 0)
    row = lambda **more: list((header | more).values())  # noqa: E731
    assert judge([row(), row(), row(version=7), row()], (4, 5, 6, 7)) == fault_of(MAP, 6)
    assert judge([row(version=7), row()], (4, 6)) == fault_of(MAP, 6, 4)
    assert judge([row(layer=3), row(), row()], (0, 1, 2)) == fault_of(LAYER, 0)
    assert judge([row(version=1), row(fault=fault_of(LAYER, 9)), row()], (0, 1, 2)) == fault_of(LAYER, 9)
    assert judge([row(rows=3), row(tokens=4)], (0, 1)) == 0


def test_a_mesh_or_a_tensor_that_does_not_fit() -> None:
    """Told at once, in one line."""

    def program(mesh: Mesh) -> None:
        mine = make_tokens([5] * 4, 12, 3)[mesh.rank]
        layer_map = LayerMap.of(PLACEMENT, 0)
        with pytest.raises(MapError, match="the map is for 1 nodes x 4 GPUs and the mesh has 2 x 2"):
            Dispatcher(mesh, replace(layer_map, num_nodes=1, gpus_per_node=4))
        with pytest.raises(OptionError, match="hops='ring' is unknown"):
            Dispatcher(mesh, layer_map, hops="ring")
        with pytest.raises(OptionError, match="must both be"):
            Dispatcher(mesh, layer_map).dispatch(mine.x, mine.ids[:2], mine.weights)
        with pytest.raises(OptionError, match="x is on meta and the dispatcher on cpu; give it device='meta'"):
            Dispatcher(mesh, layer_map).dispatch(mine.x.to("meta"), mine.ids, mine.weights)
        with pytest.raises(OptionError, match=r"dtype=torch.float64 cannot be dispatched"):
            Dispatcher(mesh, layer_map).dispatch(mine.x.double(), mine.ids, mine.weights)

    Lockstep(*SHAPE).run(program)
    with pytest.raises(MapError, match="the map has no MoE layer 5"):
        LayerMap.of(PLACEMENT, 5)


def test_lockstep_raises_what_a_rank_raised() -> None:
    """The cause, not the errors of those that waited for it; and the group can be used again."""
    group = Lockstep(*SHAPE)

    def program(mesh: Mesh) -> torch.Tensor:
        if mesh.rank == 1:
            raise ValueError("mine")
        return mesh.world.all_to_all(torch.zeros(4))

    with pytest.raises(ValueError, match="mine"):
        group.run(program)
    assert group.run(lambda mesh: mesh.world.all_to_all(torch.full((4,), mesh.rank)).tolist()) == [[0, 1, 2, 3]] * 4


def test_deepep_that_is_not_there() -> None:
    """An optional backend says how to get it."""
    from placement.runtime.transport.deepep import DeepEPBuffer

    if find_spec("deep_ep") is not None:
        pytest.skip("DeepEP is installed")
    with pytest.raises(OptionError, match="DeepEP is not installed; build deep_ep from its source"):
        DeepEPBuffer(hidden=16, top_k=3, max_tokens=8)
