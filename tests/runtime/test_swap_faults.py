"""Damaged weights, ranks that disagree, do not hear or die: the old map stays, on all ranks, and errors name who."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from moe import make_placement, make_tokens
from processes import run_processes
from swap_cases import EXPERTS, LAYERS, ROW, Holder, maps, same_up_to_order

from placement.core.migration import map_digest
from placement.errors import MapError, OptionError, RankError
from placement.runtime import Dispatcher, LayerMap, Lockstep, Mesh, Swap, torch_mesh
from placement.runtime.swap_plan import swap_plan
from placement.runtime.transport.lockstep import LockstepGroup


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
