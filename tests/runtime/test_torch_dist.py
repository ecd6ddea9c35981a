"""The same programs between processes, on gloo."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from moe import dense, make_matrices, make_placement, make_tokens, run_experts, torch
from processes import run_processes

from placement.errors import OptionError, RankError
from placement.runtime import (
    CapacityPolicy,
    Dispatcher,
    LayerMap,
    Lockstep,
    Mesh,
    MoELayer,
    Wire,
    torch_mesh,
    with_transport,
)
from placement.runtime.transport.torch_dist import _store

TIMEOUT_S = 5.0  # of which half is how far healthy ranks may be apart on a busy machine


def test_a_torch_without_its_store_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one name of torch that is not public: the installed torch has it."""
    name = "_get_default_store"
    assert hasattr(torch.distributed.distributed_c10d, name)
    monkeypatch.delattr(torch.distributed.distributed_c10d, name)
    with pytest.raises(OptionError, match=f"torch {torch.__version__.replace('+', '.')} does not give the store"):
        _store()


@pytest.mark.parametrize(("shape", "dtype"), [((2, 2), torch.float32), ((2, 1), torch.bfloat16)])
def test_output_is_that_of_a_dense_layer(shape: tuple[int, int], dtype: torch.dtype, tmp_path: Path) -> None:
    """Flat and hierarchical, an empty rank, replicas, over real sockets, which is what `auto` takes on CPUs."""
    num_ranks = shape[0] * shape[1]
    placement = make_placement(*shape, 16 // num_ranks, 12, 3)
    tokens = make_tokens([0, 20, 7, 11][:num_ranks], 12, 3, dtype=dtype)
    matrices = make_matrices(12)

    def program(rank: int) -> list[torch.Tensor]:
        mine, layer_map, out = tokens[rank], LayerMap.of(placement, 0), []
        wire = Wire(hidden=mine.x.shape[1], dtype=dtype, width=3)
        mesh = with_transport(torch_mesh(*shape, timeout_s=30), "auto", wire=wire, max_tokens=20, device="cpu")
        for hops in ("flat", "hierarchical"):
            dispatcher = Dispatcher(mesh, layer_map, hops=hops)
            rows, counts, handle = dispatcher.dispatch(mine.x, mine.ids, mine.weights)
            held = [layer_map.logical_P[p] for p in layer_map.slots_of_rank(rank)]
            out.append(dispatcher.combine(run_experts(rows, counts, held, matrices), handle).float().numpy())
        return out

    for results, mine in zip(run_processes(num_ranks, tmp_path, program), tokens, strict=True):
        for y in results:
            bound = 1e-5 if dtype == torch.float32 else 2e-2
            torch.testing.assert_close(torch.from_numpy(y), dense(mine, matrices), rtol=0, atol=bound)


def test_capacity_and_faults_as_in_lockstep(tmp_path: Path) -> None:
    """Policies give the bits that they give in one process; a bad score is told to all, who go on; so is, where sizes
    are checked, a rank that leaves out a combine."""
    placement = make_placement(2, 2, 4, 12, 3)
    tokens, matrices = make_tokens([9, 0, 14, 5], 12, 3), make_matrices(12)
    layer_map = LayerMap.of(placement, 0)

    def outputs(mesh: Mesh) -> list[torch.Tensor]:
        mine = tokens[mesh.rank]
        held = [layer_map.logical_P[p] for p in layer_map.slots_of_rank(mesh.rank)]
        out = []
        for mode, scope in (("drop", "global"), ("expanded", "global"), ("expanded", "source")):
            policy = CapacityPolicy(mode=mode, scope=scope, gamma=1.0, max_extra=1)
            dispatcher = Dispatcher(mesh, layer_map, hops="hierarchical", choice="min-nodes-balanced")
            layer = MoELayer(dispatcher, lambda rows, counts: run_experts(rows, counts, held, matrices), policy)
            out.append(layer(mine.x, mine.ids, mine.weights, mine.scores)[0].numpy())
        return out

    def program(rank: int) -> tuple[list[torch.Tensor], list[str]]:
        mesh, mine, messages = torch_mesh(2, 2, timeout_s=TIMEOUT_S, check=True), tokens[rank], []
        dispatcher = Dispatcher(mesh, layer_map)
        for weights in (mine.weights * float("nan") if rank == 2 else mine.weights, mine.weights):
            try:
                _, _, handle = dispatcher.dispatch(mine.x, mine.ids, weights)
            except RankError as error:
                messages.append(str(error))
        out = outputs(mesh)
        try:
            if rank == 2:
                dispatcher.dispatch(mine.x, mine.ids, mine.weights)
            else:
                dispatcher.combine(torch.zeros(len(handle.row_A), 16), handle)
        except RankError as error:
            messages.append(str(error))
        return out, messages

    results = run_processes(4, tmp_path, program)
    for rank, want in enumerate(Lockstep(2, 2).run(outputs)):
        got, messages = results[rank]
        assert all((a == b).all() for a, b in zip(got, want, strict=True))
        assert "rank 2 has weights or scores that are not finite" in messages[0]
        assert "it is at another exchange" in messages[1]
        assert rank == 2 or messages[1].startswith("rank 2 sends")


@pytest.mark.parametrize(("way", "hops"), [("dies", "hierarchical"), ("skips the last layer", "flat")])
def test_a_missing_rank_is_named(way: str, hops: str, tmp_path: Path) -> None:
    """Every other rank gets an error that names rank 2, within the timeout."""
    placement = make_placement(2, 2, 4, 12, 3)
    tokens = make_tokens([5] * 4, 12, 3)

    def program(rank: int) -> float:
        mesh, mine = torch_mesh(2, 2, timeout_s=TIMEOUT_S), tokens[rank]
        dispatcher = Dispatcher(mesh, LayerMap.of(placement, 0), hops=hops)
        rows, _, handle = dispatcher.dispatch(mine.x, mine.ids, mine.weights)
        dispatcher.combine(rows, handle)
        if rank == 2:
            if way == "dies":
                os._exit(9)
            return 0.0
        start = time.monotonic()
        try:
            dispatcher.dispatch(mine.x, mine.ids, mine.weights)
        except RankError as error:
            assert error.ranks == (2,), error
            return time.monotonic() - start
        return -1.0

    took = run_processes(4, tmp_path, program)
    for rank in (0, 1, 3):
        assert isinstance(took[rank], float), took
        assert 0 < took[rank] < TIMEOUT_S + 1
