"""From one map to another while serving: right weights, on all ranks at once, or the old map stays."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import make_model
from moe import make_placement
from processes import run_processes
from served_models import error, make_map, prompt, serve
from swap_cases import EXPERTS, LAYERS, ROW, Holder, maps, same_up_to_order

from placement import Placement
from placement.core.migration import map_digest
from placement.errors import OptionError
from placement.runtime import Lockstep, Mesh, Swap, attach, torch_mesh
from placement.runtime.swap_plan import swap_plan


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
