"""What is computed while rows travel: shared experts, and the other part of a batch. No bit changes by that."""

from __future__ import annotations

import copy
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from models import layer_ids, make_model
from moe import torch
from processes import run_processes
from served_models import SHAPE, make_map, prompt, serve

from placement.errors import OptionError
from placement.runtime import CapacityPolicy, Lockstep, Mesh, attach, torch_mesh
from placement.runtime.deferred import Deferred
from placement.runtime.transport.lockstep import LockstepGroup

FAMILIES = ("deepseek_v3", "qwen2_moe")  # call the shared expert after the others, and before them
DROP = CapacityPolicy(mode="drop", gamma=1.0)


def same(got: list[Any], want: list[Any]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("hops", ["flat", "hierarchical"])
def test_shared_experts_between_processes(hops: str, tmp_path: Path) -> None:
    """Four processes on gloo, whose exchanges go on in the background: bits of the plain order; gone after detach."""
    models = {family: make_model(family) for family in FAMILIES}

    def program(rank: int) -> list[tuple[bool, int]]:
        mesh, found = torch_mesh(*SHAPE, timeout_s=60), []
        for model in models.values():
            placement, plain = make_map(layer_ids(model)), serve(model, prompt(rank))
            attached = attach(model, placement, mesh, hops=hops, capacity=DROP)
            want = serve(model, prompt(rank))
            attached.detach()
            attached = attach(model, placement, mesh, hops=hops, capacity=DROP, overlap=True)
            started = count_starts(mesh)
            got = serve(model, prompt(rank))
            attached.detach()
            found.append((same(got, want) and same(serve(model, prompt(rank)), plain), len(started)))
        return found

    def count_starts(mesh: Mesh) -> list[int]:
        """Exchanges with counts, which are those of rows, that start while this rank goes on."""
        group: Any = mesh.across if hops == "hierarchical" else mesh.world
        started, start = [], group.start

        def counting(*args: Any) -> Any:
            started.extend([1] * (len(args) == 4))
            return start(*args)

        group.start = counting
        return started

    for result in run_processes(4, tmp_path, program):
        assert not isinstance(result, Exception), result
        assert all(equal and starts > 0 for equal, starts in result), result


@pytest.mark.parametrize("options", [{}, {"graph": True, "tokens": 16}], ids=["eager", "graph"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_shared_expert_runs_while_rows_travel(
    family: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a layer, between the start of the dispatch and the wait for it, with the model's bits."""
    model = make_model(family)
    placement, layer = make_map(layer_ids(model)), layer_ids(model)[-1]
    events: list[str] = []

    def start(self: LockstepGroup, send: Any, out: Any, send_rows: Any = None, recv_rows: Any = None) -> Any:
        rows = send.dtype == torch.uint8
        log = self._me == 0 and rows
        if log:
            events.append("start")
        self.all_to_all(send, send_rows, recv_rows, out)
        return lambda: events.append("wait") if log else None

    def program(mesh: Mesh, **options: Any) -> Any:
        mine = copy.deepcopy(model)
        shared = next(one for name, one in mine.model.layers[layer].mlp.named_children() if name.startswith("shared_"))
        if mesh.rank == 0:
            shared.down_proj.register_forward_hook(lambda *_: events.append("shared"))
        attached = attach(mine, placement, mesh, **options)
        got = serve(mine, prompt(mesh.rank), 0)
        attached.detach()
        return got

    wanted = Lockstep(*SHAPE).run(lambda mesh: program(mesh, **options))
    events.clear()
    monkeypatch.setattr(LockstepGroup, "start", start)
    found = Lockstep(*SHAPE).run(lambda mesh: program(mesh, overlap=True, **options))
    assert all(same(got, want) for got, want in zip(found, wanted, strict=True))
    last = events[events.index("shared") - 1 :]
    assert last[:3] == ["start", "shared", "wait"]
    assert events.count("shared") == 1


def test_a_block_that_does_otherwise() -> None:
    """A shared expert that is given another tensor than the block, or looked at early, still gives its values."""
    model = make_model("deepseek_v3")
    placement = make_map(layer_ids(model), num_nodes=1, gpus=1, slots=8)

    def other_input(self: Any, x: Any) -> Any:
        _, weights, ids = self.gate(x)
        return self.experts(x.view(-1, x.shape[-1]), ids, weights).view(x.shape) + self.shared_experts(x * 2)

    def early(self: Any, x: Any) -> Any:
        out = self.shared_experts(x)
        _, weights, ids = self.gate(x + 0 * out)
        return self.experts(x.view(-1, x.shape[-1]), ids, weights).view(x.shape) + out

    def program(mesh: Mesh, how: Any, overlap: bool) -> tuple[list[Any], int]:
        mine, calls = copy.deepcopy(model), []
        block = mine.model.layers[1].mlp
        block.shared_experts.down_proj.register_forward_hook(lambda *_: calls.append(1))
        block.forward = how.__get__(block)
        attach(mine, placement, mesh, overlap=overlap)
        return serve(mine, prompt(0), 1), len(calls)

    for how, calls in ((other_input, 3), (early, 2)):  # the first of two forwards computes one in vain
        (want, _), (got, made) = (
            Lockstep(1, 1).run(lambda mesh, how=how, overlap=overlap: program(mesh, how, overlap))[0]
            for overlap in (False, True)
        )
        assert same(got, want)
        assert made == calls


def halves(rank: int) -> list[Any]:
    """Two micro-batches of a rank, of different shapes."""
    return [prompt(rank), prompt(rank + 4)[:1]]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_micro_batches_between_processes(family: str, overlap: bool, tmp_path: Path) -> None:
    """On gloo, a rank joining in both: the bits of one after the other; with replicas for one forward, since copies are
    drawn by the number of a token, else decode too."""
    model = make_model(family)

    def program(rank: int) -> list[bool]:
        mesh, found, hops = torch_mesh(*SHAPE, timeout_s=60), [], "hierarchical" if overlap else "flat"
        for slots, steps in ((3, 0), (2, 2)):
            for capacity in (CapacityPolicy(), DROP):
                answers = []
                for together in (False, True):
                    placement = make_map(layer_ids(model), slots=slots)
                    attached = attach(model, placement, mesh, hops=hops, capacity=capacity, overlap=overlap)

                    def join(attached: Any = attached, times: int = 1 + steps) -> list[Any]:
                        return [attached.join() for _ in range(times)]

                    calls = [partial(serve, model, tokens, steps) for tokens in halves(rank)]
                    if rank == 3:
                        calls = [join, join]
                    answers.append(attached.interleave(*calls) if together else [call() for call in calls])
                    attached.detach()
                found.append(rank == 3 or all(same(got, want) for got, want in zip(*answers, strict=True)))
        return found

    for result in run_processes(4, tmp_path, program):
        assert not isinstance(result, Exception), result
        assert all(result) and len(result) == 4, result


@pytest.mark.parametrize("options", [{}, {"graph": True, "tokens": 16}], ids=["eager", "graph"])
def test_one_computes_while_rows_of_the_other_travel(options: dict[str, Any]) -> None:
    """In turns, at the rows that go and at the sums that come back; marks are those of each call alone."""
    model = make_model("deepseek_v3")
    placement, events = make_map(layer_ids(model)), []

    def program(mesh: Mesh) -> list[Any]:
        mine = copy.deepcopy(model)
        attached = attach(mine, placement, mesh, **options)
        if mesh.rank == 0:
            block = mine.model.layers[layer_ids(model)[-1]]
            block.self_attn.register_forward_pre_hook(lambda *_: events.append(f"attention {threading.get_ident()}"))
            attached._turns.pass_on = passing(attached._turns.pass_on)  # type: ignore[method-assign]
        return attached.interleave(*(partial(serve, mine, tokens, 0) for tokens in halves(mesh.rank)))

    def passing(pass_on: Any) -> Any:
        def logged() -> None:
            events.append(f"rows {threading.get_ident()}")
            pass_on()

        return logged

    Lockstep(*SHAPE).run(program)
    names = list(dict.fromkeys(event.split()[1] for event in events))
    assert len(names) == 2
    assert [event.replace(names[0], "a").replace(names[1], "b") for event in events] == [
        "attention a",
        "rows a",
        "attention b",
        "rows b",
        "rows a",
        "rows b",
    ]


def test_marks_of_calls_that_take_turns() -> None:
    """Each call's priorities are its own: they are dropped last there, and nowhere else."""
    model = make_model("olmoe")
    placement = make_map(layer_ids(model), num_nodes=1, gpus=1, slots=8)
    policy = CapacityPolicy(mode="drop", gamma=0.5)
    parts = [prompt(3), prompt(2)]

    def program(mesh: Mesh) -> tuple[list[Any], list[Any]]:
        mine = copy.deepcopy(model)
        attached = attach(mine, placement, mesh, capacity=policy)

        def call(part: int) -> Any:
            with attached.marked(priority=torch.arange(parts[part].numel()) * (1 - 2 * part) + 30):
                return serve(mine, parts[part], 0)

        return attached.interleave(partial(call, 0), partial(call, 1)), [call(0), call(1)]

    ((got, want),) = Lockstep(1, 1).run(program)
    assert all(same(a, b) for a, b in zip(got, want, strict=True))


def test_a_call_that_fails() -> None:
    """The others come to their end, and what it raised is raised."""
    model, fits = make_model("olmoe"), make_map((0, 1), num_nodes=1, gpus=1, slots=8)
    ends: list[int] = []

    def program(mesh: Mesh) -> None:
        mine = copy.deepcopy(model)
        attached = attach(mine, fits, mesh)

        def broken() -> None:
            raise ValueError("a call of the user's")

        def whole() -> None:
            ends.append(len(serve(mine, prompt(0))))

        with pytest.raises(ValueError, match="a call of the user's"):
            attached.interleave(whole, broken, whole)
        assert attached.interleave() == []
        mesh.world.mover = mesh  # any at all
        with pytest.raises(OptionError, match="symmetric memory has one room for rows"):
            attached.interleave(whole)

    Lockstep(1, 1).run(program)
    assert ends == [4, 4]


def test_values_that_come_later() -> None:
    """Computed once, by whatever operation asks first; of another shape they are refused."""
    made: list[int] = []
    x = torch.arange(6.0).view(2, 3)
    later = Deferred(x, lambda: made.append(1) or x * 2)
    assert not made and later.shape == (2, 3)
    assert torch.equal(later + 1, x * 2 + 1) and torch.equal(torch.sigmoid(x) * later, torch.sigmoid(x) * (x * 2))
    assert made == [1]
    with pytest.raises(OptionError, match=r"gives \[3, 2\] .* attach with overlap=False"):
        _ = Deferred(x, lambda: x.T) + 1


def test_a_model_without_shared_experts() -> None:
    """Refused, and left as it was."""
    model, fits = make_model("olmoe"), make_map((0, 1), num_nodes=1, gpus=1, slots=8)
    with pytest.raises(OptionError, match=r"layer 0 .OlmoeSparseMoeBlock. has 0 beside its experts"):
        Lockstep(1, 1).run(lambda mesh: attach(model, fits, mesh, overlap=True, capacity=DROP))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
