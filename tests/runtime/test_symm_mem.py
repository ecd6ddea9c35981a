"""Rows by symmetric memory are those of the other transports, and where it cannot be used all ranks are told why.

On a CPU, against a stand-in behind torch's own schema (`symmetric.py`); not run on a GPU.
"""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from hot_path import as_on_a_gpu, counting
from moe import make_matrices, make_placement, make_tokens, run_experts, torch
from symmetric import BLANK, Stand, inside, symmetric

from placement.errors import OptionError, RankError
from placement.runtime import CapacityPolicy, Dispatcher, LayerMap, Lockstep, Mesh, MoELayer, Wire, with_transport
from placement.runtime.transport import TRANSPORTS

assert as_on_a_gpu and symmetric  # fixtures
EXPERTS, TOP_K, HIDDEN, MOST = 12, 3, 16, 20
LAYER_MAP = LayerMap.of(make_placement(2, 2, 4, EXPERTS, TOP_K), 0)
SIZES = [9, 0, 14, 5]
WIRE = Wire(hidden=HIDDEN, dtype=torch.float32, width=TOP_K)


def test_the_stand_in_keeps_the_contract(symmetric: Stand) -> None:
    """torch's own example: two ranks, two experts each; blocks of experts start at a multiple of 16, an empty one is 16
    long; ranks follow one another within a block."""
    splits = [[5, 3, 0, 1], [7, 2, 0, 4]]

    def program(mesh: Mesh) -> Any:
        given, out = (symmetric.empty(64, 1, dtype=torch.int32, device="cpu") for _ in range(2))
        in_splits = symmetric.empty(4, dtype=torch.int64, device="cpu")
        counts = symmetric.empty(2, 4, dtype=torch.int64, device="cpu")
        for one in (given, out, in_splits, counts):
            symmetric.rendezvous(one, mesh.world.name)
        given[:, 0] = torch.arange(64) + 100 * mesh.rank
        in_splits.copy_(torch.tensor(splits[mesh.rank]))
        torch.ops.symm_mem.all_to_all_vdev_2d(given, out, in_splits, counts, mesh.world.name, 16)
        return out[:, 0].tolist(), counts.tolist()

    symmetric.set_backend("NVSHMEM")
    (first, first_counts), (second, second_counts) = Lockstep(1, 2).run(inside(symmetric, program))
    assert first_counts == [[5, 7, 3, 2], [0, 5, 16, 19]]
    assert first[:12] == [0, 1, 2, 3, 4, 100, 101, 102, 103, 104, 105, 106]
    assert first[16:21] == [5, 6, 7, 107, 108]
    blank = int.from_bytes(bytes([BLANK] * 4), "little", signed=True)
    assert set(first[12:16]) == {blank}
    assert second_counts == [[0, 0, 1, 4], [0, 0, 16, 17]]
    assert second[16:21] == [8, 109, 110, 111, 112]


def outputs(
    mesh: Mesh, hops: str, dtype: torch.dtype, *, fp8: bool = False, most: int = MOST, sizes: list[int] = SIZES
) -> Any:
    """Sums of three steps of a layer, the last without a limit, and what was sent; 2 x 2 ranks, one without tokens."""
    mine = make_tokens(sizes, EXPERTS, TOP_K, dtype=dtype)[mesh.rank]
    held, matrices = [LAYER_MAP.logical_P[p] for p in LAYER_MAP.slots_of_rank(mesh.rank)], make_matrices(EXPERTS)
    dispatcher = Dispatcher(mesh, LAYER_MAP, hops=hops, fp8=fp8)
    out = []
    for policy in (CapacityPolicy(mode="drop", gamma=1.0), CapacityPolicy(), CapacityPolicy()):
        layer = MoELayer(dispatcher, lambda rows, counts: run_experts(rows, counts, held, matrices), policy)
        y, stats = layer(mine.x, mine.ids, mine.weights, mine.scores)
        out += [y.clone(), stats.load_P, torch.tensor([stats.copies, stats.across_bytes, stats.within_bytes])]
    return out


@pytest.mark.parametrize("hops", ["flat", "hierarchical"])
@pytest.mark.parametrize(("dtype", "fp8"), [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)])
def test_the_same_bits_as_by_other_transports(
    hops: str, dtype: torch.dtype, fp8: bool, as_on_a_gpu: None, symmetric: Stand
) -> None:
    """Rows in slot order, loads, bytes and sums, with the code that a GPU runs."""
    wire = Wire(hidden=HIDDEN, dtype=dtype, width=TOP_K, fp8=fp8)

    def program(mesh: Mesh) -> Any:
        moved = with_transport(mesh, "symm-mem", wire=wire, max_tokens=MOST, device="cpu")
        return outputs(moved, hops, dtype, fp8=fp8)

    wanted = Lockstep(2, 2).run(lambda mesh: outputs(mesh, hops, dtype, fp8=fp8))
    got = Lockstep(2, 2).run(inside(symmetric, program))
    assert symmetric.moves == 4 * 3 * 2 * (1 if hops == "flat" else 2)
    for mine, want in zip(got, wanted, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, want, strict=True))
    assert float(got[0][0].abs().sum()) > 1


def test_a_fault_is_told_and_the_next_step_is_sound(as_on_a_gpu: None, symmetric: Stand) -> None:
    """Rows are under way when the headers tell of the fault: all ranks raise, and go on in step."""

    def program(mesh: Mesh) -> Any:
        moved = with_transport(mesh, "symm-mem", wire=WIRE, max_tokens=MOST, device="cpu")
        mine = make_tokens(SIZES, EXPERTS, TOP_K)[mesh.rank]
        dispatcher = Dispatcher(moved, LAYER_MAP, hops="hierarchical")
        with pytest.raises(RankError, match="rank 2 has expert ids that the model does not have"):
            dispatcher.dispatch(mine.x, mine.ids + 100 * (mesh.rank == 2), mine.weights)
        return outputs(moved, "hierarchical", torch.float32)

    wanted = Lockstep(2, 2).run(lambda mesh: outputs(mesh, "hierarchical", torch.float32))
    for mine, want in zip(Lockstep(2, 2).run(inside(symmetric, program)), wanted, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, want, strict=True))


def test_dispatches_end_in_any_order(symmetric: Stand) -> None:
    """The counts of a dispatch outlive those that follow: the first sums come back last."""

    def program(mesh: Mesh) -> Any:
        moved = with_transport(mesh, "symm-mem", wire=WIRE, max_tokens=MOST, device="cpu")
        dispatcher = Dispatcher(moved, LAYER_MAP, hops="hierarchical")
        sent = []
        for seed in range(3):
            mine = make_tokens([9 + seed, 2, 14 - seed, 5], EXPERTS, TOP_K, seed=seed)[mesh.rank]
            rows, _, handle = dispatcher.dispatch(mine.x, mine.ids, torch.full_like(mine.weights, 1 / TOP_K))
            sent.append((mine.x, rows, handle))
        return [(x, dispatcher.combine(rows, handle)) for x, rows, handle in reversed(sent)]

    for outcome in Lockstep(2, 2).run(inside(symmetric, program)):
        for x, y in outcome:
            torch.testing.assert_close(y, x, rtol=0, atol=1e-5)


def test_nothing_waits_for_counts(as_on_a_gpu: None, symmetric: Stand) -> None:
    """A dispatch and a combine wait once, for the headers; rows are sent before, and no count comes from the host."""

    def program(mesh: Mesh) -> Any:
        moved = with_transport(mesh, "symm-mem", wire=WIRE, max_tokens=MOST, device="cpu")
        mine = make_tokens([9] * 4, EXPERTS, TOP_K)[mesh.rank]
        dispatcher = Dispatcher(moved, LAYER_MAP)
        slots = dispatcher.choose(mine.ids)
        with counting() as counted:
            arrival = dispatcher.send(mine.x, slots, mine.weights)
            dispatcher.give_back(arrival.hidden.clone(), arrival.hops)
        return counted

    counted = Lockstep(2, 2).run(inside(symmetric, program))[0]
    assert not counted.waits
    assert counted.launched["host"] == 1
    assert list(counted.launched).index("symm_mem::all_to_all_vdev_2d") < list(counted.launched).index("host")


def refused(mesh: Mesh, transport: str = "symm-mem", **options: Any) -> str:
    with pytest.raises(OptionError) as found:
        with_transport(mesh, transport, **{"wire": WIRE, "max_tokens": MOST, "device": "cpu"} | options)
    return str(found.value)


def test_where_it_cannot_be_used() -> None:
    """By name it is refused: what, what is allowed, how to mend it."""
    (text,) = Lockstep(1, 1).run(refused)
    assert text.startswith("transport='symm-mem' cannot be used: rows are on 'cpu', and NVSHMEM moves memory of GPUs")
    assert text.endswith("or choose transport='torch', or 'auto' for the first that can be used")
    assert "max_tokens=0 must be at least 1" in Lockstep(1, 1).run(lambda mesh: refused(mesh, max_tokens=0))[0]
    (text,) = Lockstep(1, 1).run(lambda mesh: refused(mesh, "nvlink"))
    assert text == "transport='nvlink' is unknown; choose one of auto, symm-mem, torch"


def test_what_torch_lacks(symmetric: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank refuses, so all do; the others name it. The operation of another torch has other arguments."""

    def program(mesh: Mesh) -> str:
        symmetric.available = mesh.rank != 2
        return refused(mesh)

    texts = Lockstep(2, 2).run(inside(symmetric, program))
    assert "finds no NVSHMEM; install a torch for CUDA on Linux" in texts[2]
    assert all("rank 2 cannot, and says why" in texts[rank] for rank in (0, 1, 3))
    symmetric.available = True
    many = SimpleNamespace(world=SimpleNamespace(ranks=tuple(range(33))))
    assert "33 ranks, and the operation takes 32" in TRANSPORTS.make("symm-mem").refusal(many, torch.device("cpu"))
    monkeypatch.setattr("placement.runtime.transport.symm_mem.ARGUMENTS", ["input", "out", "in_out_splits"])
    (text,) = Lockstep(1, 1).run(inside(symmetric, refused))
    assert "has no all_to_all_vdev_2d of the arguments input, out, in_out_splits" in text


def test_memory_that_is_taken_or_too_small(symmetric: Stand) -> None:
    """Another backend has memory already; rows of another size or more than a rank may bring, before they move."""

    def too_much(mesh: Mesh) -> None:
        moved = with_transport(mesh, "symm-mem", wire=WIRE, max_tokens=4, device="cpu")
        dispatcher = Dispatcher(moved, LAYER_MAP)
        for tokens in (make_tokens([60], EXPERTS, TOP_K), make_tokens([2], EXPERTS, TOP_K, dtype=torch.bfloat16)):
            with pytest.raises(OptionError, match="do not fit into symmetric memory, which was made for rows of"):
                dispatcher.send(tokens[0].x, dispatcher.choose(tokens[0].ids), tokens[0].weights)

    Lockstep(2, 2).run(inside(symmetric, too_much))
    symmetric.backend = "CUDA"
    (text,) = Lockstep(1, 1).run(inside(symmetric, refused))
    assert text.startswith("symmetric memory is in use on CUDA: the backend cannot be changed; make this mesh first")


def test_auto_takes_the_first_that_all_can_use(symmetric: Stand, caplog: pytest.LogCaptureFixture) -> None:
    """And the log tells which, and why not another."""

    def mesh_of(mesh: Mesh) -> bool:
        moved = with_transport(mesh, "auto", wire=WIRE, max_tokens=MOST, device="cpu")
        return moved.world.mover is not None

    with caplog.at_level(logging.INFO, logger="placement"):
        assert Lockstep(1, 2).run(inside(symmetric, mesh_of)) == [True, True]
        assert caplog.messages == ["rows go by transport symm-mem"] * 2
        caplog.clear()
        symmetric.available = False
        assert Lockstep(1, 1).run(inside(symmetric, mesh_of)) == [False]
    assert "transport symm-mem cannot be used" in caplog.messages[0] and "finds no NVSHMEM" in caplog.messages[0]
    assert caplog.messages[1] == "rows go by transport torch"
