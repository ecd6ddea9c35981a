"""From one map to another while serving: right weights, on all ranks at once, or the old map stays."""

from __future__ import annotations

import copy
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import make_model
from moe import make_placement, make_tokens, torch
from processes import run_processes
from served_models import error, make_map, prompt, serve

from placement import Placement
from placement.core.migration import map_digest
from placement.errors import MapError, OptionError, RankError
from placement.runtime import Dispatcher, LayerMap, Lockstep, Mesh, SlotWeights, Swap, attach, torch_mesh
from placement.runtime.swap import DIGEST_BYTES
from placement.runtime.swap_plan import swap_plan
from placement.runtime.transport.lockstep import LockstepGroup

LAYERS, EXPERTS = 3, 12
ROW = 4 * 6 + 2 * 5 + DIGEST_BYTES


class Holder:
    """A rank's slots; the weights of an expert say its layer and number."""

    def __init__(self, placement: Placement, mesh: Mesh) -> None:
        self.placement, self.mesh = placement, mesh
        slots = slice(mesh.rank * placement.slots_per_gpu, (mesh.rank + 1) * placement.slots_per_gpu)
        self.slots_L = [
            SlotWeights({name: weights(name, layer, row) for name in ("up", "down")})
            for layer, row in enumerate(placement.phy2log_LP[:, slots].tolist())
        ]

    def use(self, placement: Placement) -> None:
        self.placement = placement

    def right(self) -> bool:
        """Every slot has the weights of the expert that the map in force says."""
        mine = Holder(self.placement, self.mesh)
        return all(
            torch.equal(one.tensors[name], other.tensors[name])
            for one, other in zip(self.slots_L, mine.slots_L, strict=True)
            for name in one.tensors
        )


def weights(name: str, layer: int, held: list[int]) -> Any:
    """fp32 [S, 2, 3] or bf16 [S, 5]."""
    shape, dtype = ((2, 3), torch.float32) if name == "up" else ((5,), torch.bfloat16)
    return torch.stack([torch.full(shape, layer * EXPERTS + expert, dtype=dtype) for expert in held])


def maps(num_nodes: int = 2, gpus: int = 2, slots: int = 4, *, seeds: tuple[int, int] = (0, 1)) -> list[Placement]:
    return [make_placement(num_nodes, gpus, slots, EXPERTS, 3, seed=seed, layers=LAYERS) for seed in seeds]


def same_up_to_order(one: Placement, other: Placement) -> bool:
    """Every rank holds the same experts."""
    shape = (LAYERS, one.num_ranks, -1)
    return np.array_equal(np.sort(one.phy2log_LP.reshape(shape)), np.sort(other.phy2log_LP.reshape(shape)))


@settings(max_examples=20)
@given(
    seeds=st.tuples(st.integers(0, 99), st.integers(0, 99)),
    staging=st.one_of(st.none(), st.integers(5 * ROW, 13 * ROW)),
    ranks=st.booleans(),
    wasted=st.booleans(),
)
def test_all_slots_change_at_once(seeds: tuple[int, int], staging: int | None, ranks: bool, wasted: bool) -> None:
    """After every step, on all ranks, the slots are right for the map in force, and it is the same map.

    The map in use may be one of EPLB's, with an expert twice on a rank.
    """
    old, new = maps(seeds=seeds)
    if wasted:
        old = make_placement(2, 2, 4, EXPERTS, 3, seed=seeds[0], layers=LAYERS, wasted=True)

    def program(mesh: Mesh) -> list[str]:
        holder = Holder(old, mesh)
        swap = Swap(holder, new, staging_bytes=staging, relabel_ranks=ranks)
        steps, done = [], False
        while not done:
            done = swap.advance()
            assert holder.right()
            steps.append(map_digest(holder.placement))
        assert steps[-1] == map_digest(swap.target)
        assert len(steps) == swap.num_steps
        assert ranks or same_up_to_order(swap.target, new)
        if staging is None:
            assert set(steps[:-1]) <= {map_digest(old)}
        return steps

    results = Lockstep(2, 2).run(program)
    assert all(steps == results[0] for steps in results)


@pytest.mark.parametrize("staging", [5 * ROW, 7 * ROW, None])
def test_staging_memory_is_bounded(staging: int | None) -> None:
    """What lies beside the slots on a rank; less than one layer needs is refused with the number that would do."""
    old, new = maps()
    plan = swap_plan(old, new, row_bytes=ROW, expert_bytes=34, staging_bytes=staging, cluster=None, relabel_ranks=False)
    used = [(1 + len(stage.rows_of(rank))) * ROW for stage in plan.stages for rank in range(4)]
    assert staging is None or max(used) <= staging
    assert (staging is None) == (len(plan.stages) == 1)

    def program(mesh: Mesh) -> int:
        holder, most, done = Holder(old, mesh), 0, False
        swap = Swap(holder, new, staging_bytes=staging, relabel_ranks=False)
        while not done:
            done = swap.advance()
            most = max(most, 0 if swap._room is None else swap._room.nbytes)
        return most

    assert max(Lockstep(2, 2).run(program)) <= (staging or max(used))
    with pytest.raises(OptionError, match=f"take {5 * ROW} bytes"):
        Lockstep(2, 2).run(lambda mesh: Swap(Holder(old, mesh), new, staging_bytes=4 * ROW, relabel_ranks=False))


def test_no_more_moves_than_the_plan() -> None:
    """Only slots whose expert the rank does not hold come over the wire; equal maps and other orders move nothing."""
    old, _ = maps()
    turned = np.roll(old.phy2log_LP.reshape(LAYERS, 4, 4), 1, axis=2).reshape(LAYERS, -1)
    for new, ranks in ((old, False), (replace(old, phy2log_LP=turned), False)):
        moved = Lockstep(2, 2).run(lambda mesh, new=new, ranks=ranks: run_swap(old, new, mesh, ranks))
        assert moved == [0] * 4
    # whole ranks that trade places move nothing where ranks have no names, all of their slots where they have
    traded = replace(old, phy2log_LP=old.phy2log_LP.reshape(LAYERS, 2, 2, 4)[:, ::-1].reshape(LAYERS, -1))
    assert Lockstep(2, 2).run(lambda mesh: run_swap(old, traded, mesh, True)) == [0] * 4
    assert sum(Lockstep(2, 2).run(lambda mesh: run_swap(old, traded, mesh, False))) > 0


def run_swap(old: Placement, new: Placement, mesh: Mesh, ranks: bool) -> int:
    """Rows that came to the rank; they are those of the plan."""
    holder, came = Holder(old, mesh), 0
    real = mesh.world.all_to_all

    def counting(send: Any, send_rows: Any = None, recv_rows: Any = None, out: Any = None) -> Any:
        nonlocal came
        came += 0 if recv_rows is None else sum(recv_rows)
        return real(send, send_rows, recv_rows, out)

    mesh.world.all_to_all = counting  # type: ignore[method-assign]
    swap = Swap(holder, new, relabel_ranks=ranks)
    swap.run()
    assert holder.right()
    plan = swap.migration
    assert came == int(((plan.target_M == mesh.rank) & plan.moves_M).sum())
    assert int(plan.bytes_GG.sum()) == plan.num_moves * 34
    return came


def test_a_model_serves_while_its_weights_move() -> None:
    """Logits within 1e-5 of the plain model at every step: before, between, and after."""
    model = make_model("gpt_oss")
    old, new = make_map((0, 1)), make_map((0, 1), seed=5)
    wanted = [serve(model, prompt(rank), 1) for rank in range(4)]

    def program(mesh: Mesh) -> list[str]:
        mine = copy.deepcopy(model)
        attached = attach(mine, old, mesh)
        swap = attached.swap(new)
        found = []
        while True:
            assert error(serve(mine, prompt(mesh.rank), 1), wanted[mesh.rank]) < 1e-5
            found.append(map_digest(attached.placement))
            if found[-1] == map_digest(swap.target):
                return found
            swap.advance()

    results = Lockstep(2, 2).run(program)
    assert len(results[0]) == 1 + Lockstep(1, 1).run(lambda _: swap_steps(old, new))[0]
    assert all(one == results[0] for one in results)
    assert set(results[0][:-1]) == {map_digest(old)}


def swap_steps(old: Placement, new: Placement) -> int:
    plan = swap_plan(old, new, row_bytes=1, expert_bytes=1, staging_bytes=None, cluster=None, relabel_ranks=True)
    return sum(len(stage.steps) + 1 for stage in plan.stages)


def test_damaged_weights_leave_the_old_map() -> None:
    """One bit on its way to rank 2: all ranks raise the error that names it, and a new try succeeds."""
    old, new = maps()

    def program(mesh: Mesh) -> str:
        holder = Holder(old, mesh)
        swap = Swap(holder, new, relabel_ranks=False)
        real = mesh.world.all_to_all

        def flipped(send: Any, send_rows: Any = None, recv_rows: Any = None, out: Any = None) -> Any:
            came = real(send, send_rows, recv_rows, out)
            if mesh.rank == 2 and send_rows is not None and len(came):
                came[0, 0] ^= 1
            return came

        mesh.world.all_to_all = flipped  # type: ignore[method-assign]
        with pytest.raises(RankError, match="hash") as raised:
            swap.run()
        mesh.world.all_to_all = real  # type: ignore[method-assign]
        assert holder.placement is old
        assert holder.right()
        with pytest.raises(OptionError, match="is over"):
            swap.advance()
        Swap(holder, new, relabel_ranks=False).run()
        assert holder.right()
        assert same_up_to_order(holder.placement, new)
        return str(raised.value)

    assert all("rank 2 got weights" in message for message in Lockstep(2, 2).run(program))


def test_ranks_that_ask_for_different_swaps() -> None:
    """Another map, other options: named on all ranks before anything moves."""
    old, new = maps()
    other = maps(seeds=(0, 2))[1]
    for wrong, words in (
        (lambda holder: Swap(holder, other), "rank 3 was asked for another swap"),
        (lambda holder: Swap(holder, new, staging_bytes=9 * ROW), "rank 3 was asked for another swap"),
    ):

        def program(mesh: Mesh, wrong: Any = wrong, words: str = words) -> None:
            holder = Holder(old, mesh)
            swap = wrong(holder) if mesh.rank == 3 else Swap(holder, new)
            with pytest.raises(RankError, match=words):
                swap.run()
            assert holder.placement is old
            assert holder.right()

        Lockstep(2, 2).run(program)


def test_a_rank_that_serves_where_others_swap() -> None:
    """It takes one step too few: all raise, and have the old map."""
    old, new = maps()
    tokens = make_tokens([3] * 4, EXPERTS, 3)

    def program(mesh: Mesh) -> None:
        holder, mine = Holder(old, mesh), tokens[mesh.rank]
        swap = Swap(holder, new)
        swap.advance()
        with pytest.raises(RankError, match=r"rank 3 is at another layer or step than the others"):
            if mesh.rank == 3:
                Dispatcher(mesh, LayerMap.of(old, 0)).dispatch(mine.x, mine.ids, mine.weights)
            else:
                swap.advance()
        assert holder.placement is old
        assert holder.right()

    Lockstep(2, 2).run(program)


def test_a_map_of_another_mesh_is_refused() -> None:
    old, _ = maps()
    wide = make_placement(1, 2, 8, EXPERTS, 3, layers=LAYERS)
    with pytest.raises(MapError, match="are needed"):
        Lockstep(2, 2).run(lambda mesh: Swap(Holder(old, mesh), wide))


@pytest.mark.parametrize("deaf", range(4))
def test_a_vote_that_one_rank_did_not_hear(deaf: int) -> None:
    """Its exchange fails after the others had all votes: whoever decides first, all have the same map."""
    old, new = maps()
    real = LockstepGroup.all_to_all
    votes = swap_plan(
        old, new, row_bytes=ROW, expert_bytes=34, staging_bytes=None, cluster=None, relabel_ranks=True
    ).stages[0]

    def program(mesh: Mesh) -> tuple[str, bool]:
        holder, calls = Holder(old, mesh), 0

        def broken(send: Any, *rest: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            came = real(mesh.world, send, *rest, **more)  # type: ignore[arg-type]
            if mesh.rank == deaf and calls == 2 * len(votes.steps) + 1:
                raise RankError("the line is dead", (deaf,))
            return came

        mesh.world.all_to_all = broken  # type: ignore[method-assign]
        raised = False
        try:
            Swap(holder, new).run()
        except RankError:
            raised = True
        assert holder.right()
        return map_digest(holder.placement), raised

    results = Lockstep(2, 2).run(program)
    assert len({digest for digest, _ in results}) == 1
    assert results[deaf][1]


@pytest.mark.parametrize("when", ["transfer", "vote"])
@pytest.mark.parametrize("victim", [1, 0])
def test_a_rank_that_is_killed(when: str, victim: int, tmp_path: Path) -> None:
    """SIGKILL in the middle of the weights, or just before the vote: the others name it and have the old map, whole."""
    old, new = maps(1, 3, 5)

    def program(rank: int) -> tuple[str, bool, bool]:
        holder = Holder(old, torch_mesh(1, 3, timeout_s=4))
        swap = Swap(holder, new)
        fatal = 1 if when == "transfer" else swap.num_steps - 1
        assert swap.num_steps > 3
        try:
            for step in range(swap.num_steps):
                if rank == victim and step == fatal:
                    os.kill(os.getpid(), signal.SIGKILL)
                swap.advance()
        except RankError as error:
            return str(error), holder.placement is old, holder.right()
        return "no error", False, False

    results = run_processes(3, tmp_path, program, seconds=20)
    for rank, result in enumerate(results):
        if rank != victim:
            assert isinstance(result, tuple), result
            assert f"rank {victim} " in result[0]
            assert result[1:] == (True, True)
    assert results[victim] is None


def test_between_processes(tmp_path: Path) -> None:
    """The whole way with gloo, in stages."""
    old, new = maps(2, 1, 8)

    def program(rank: int) -> tuple[str, bool]:
        holder = Holder(old, torch_mesh(2, 1, timeout_s=10))
        swap = Swap(holder, new, staging_bytes=9 * ROW)
        swap.run()
        return map_digest(holder.placement), holder.right() and map_digest(swap.target) == map_digest(holder.placement)

    results = run_processes(2, tmp_path, program)
    assert results[0] == results[1]
    assert results[0][1]
