"""A model attached for graphs: the logits of the eager one, in shapes and by decisions that no data change."""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from models import layer_ids, make_model
from moe import torch
from served_models import SHAPE, error, make_map, prompt, serve

from placement.errors import OptionError, RankError
from placement.runtime import (
    CapacityPolicy,
    Lockstep,
    Mesh,
    attach,
    torch_mesh,
)

TOKENS = 16
DROP = CapacityPolicy(mode="drop", gamma=1.0, spare_decode=False)
EXPANDED = CapacityPolicy(mode="expanded", gamma=1.0, max_extra=1, spare_decode=False)


@pytest.mark.parametrize("slots", [2, 3], ids=["one copy", "replicas"])
@pytest.mark.parametrize(
    ("family", "policy"),
    [
        ("olmoe", CapacityPolicy()),
        ("olmoe", DROP),
        ("mixtral", CapacityPolicy(mode="drop", gamma=1.0)),
        ("deepseek_v3", DROP),
        ("deepseek_v3", EXPANDED),
        ("gpt_oss", CapacityPolicy()),
    ],
    ids=lambda one: getattr(one, "mode", one),
)
def test_logits_are_those_of_the_eager_model(family: str, policy: CapacityPolicy, slots: int) -> None:
    """Prefill and decode on four ranks with batches of different shapes, step by step the same drops."""
    model = make_model(family)
    placement = make_map(layer_ids(model), slots=slots)

    def program(mesh: Mesh, **options: Any) -> tuple[list[Any], list[int]]:
        mine, dropped = copy.deepcopy(model), []
        attached = attach(mine, placement, mesh, capacity=policy, **options)
        mine.register_forward_hook(lambda *_: dropped.extend(int(one.dropped) for one in attached.stats))
        got = serve(mine, prompt(mesh.rank))
        attached.check()
        return got, dropped

    tokens = max(prompt(rank).numel() for rank in range(4))
    wanted = Lockstep(*SHAPE).run(program)
    for got, want in zip(
        Lockstep(*SHAPE).run(lambda mesh: program(mesh, graph=True, tokens=tokens)), wanted, strict=True
    ):
        assert error(got[0], want[0]) < 1e-5
        assert got[1] == want[1]
    assert any(any(dropped) for _, dropped in wanted) == (policy.mode != "none")


def test_prompts_outside_of_the_graph() -> None:
    """Decode in the fixed shape of one token a row, prompts as without a graph; a rank without tokens joins."""
    model = make_model("qwen2_moe")
    placement = make_map(layer_ids(model))

    @torch.no_grad()
    def program(mesh: Mesh) -> list[Any]:
        mine = copy.deepcopy(model)
        attached = attach(mine, placement, mesh, capacity=DROP, graph=True, tokens=2)
        if mesh.rank == 3:
            with attached.eager():
                attached.join()
            attached.join()
            return []
        with pytest.raises(OptionError, match="has 4 tokens and the layer is made for tokens=2"):
            mine(input_ids=torch.ones((1, 4), dtype=torch.long))
        name = "cache" if "cache" in inspect.signature(mine.forward).parameters else "past_key_values"
        with attached.eager(), attached.marked(priority=torch.zeros(prompt(mesh.rank).shape)):
            out = mine(input_ids=prompt(mesh.rank), use_cache=True)
        last = out.logits[:, -1:].argmax(dim=-1)
        return [out.logits, mine(input_ids=last, **{name: out[name]}).logits]

    def eager(mesh: Mesh) -> list[Any]:
        mine = copy.deepcopy(model)
        attached = attach(mine, placement, mesh, capacity=DROP)
        if mesh.rank == 3:
            attached.join()
            attached.join()
            return []
        return serve(mine, prompt(mesh.rank), 1)

    for got, want in zip(Lockstep(*SHAPE).run(program)[:3], Lockstep(*SHAPE).run(eager)[:3], strict=True):
        assert error(got, want) < 1e-5


@pytest.mark.parametrize("slots", [2, 3], ids=["one copy", "replicas"])
@pytest.mark.parametrize("policy", [CapacityPolicy(), DROP, EXPANDED], ids=lambda one: one.mode)
def test_another_map_between_tokens(policy: CapacityPolicy, slots: int) -> None:
    """Logits and drops are those of the eager model that goes over in the same steps, prompts outside of the graph and
    ranks without tokens included; the layers in fixed shapes are the same objects before and after."""
    model = make_model("deepseek_v3")
    old, new = make_map(layer_ids(model), slots=slots), make_map(layer_ids(model), seed=5, slots=slots)

    @torch.no_grad()
    def program(mesh: Mesh, **options: Any) -> tuple[list[Any], list[int]]:
        mine, dropped, found = copy.deepcopy(model), [], []
        attached = attach(mine, old, mesh, capacity=policy, **options)
        mine.register_forward_hook(lambda *_: dropped.extend(int(one.dropped) for one in attached.stats))
        fixed, swap, done = [layer.fixed for layer in attached.layers], attached.swap(new), False
        while True:
            if mesh.rank == 3:
                attached.join()
            else:
                found.append(mine(input_ids=prompt(mesh.rank)).logits)
            if done:
                break
            done = swap.advance()
        with attached.eager():
            found.append(mine(input_ids=prompt(mesh.rank)).logits)
        attached.check()
        assert attached.placement is swap.target
        assert all(one is layer.fixed for one, layer in zip(fixed, attached.layers, strict=True))
        return found, dropped

    wanted = Lockstep(*SHAPE).run(program)
    tokens = max(prompt(rank).numel() for rank in range(4))
    fixed = Lockstep(*SHAPE).run(lambda mesh: program(mesh, graph=True, tokens=tokens))
    for rank, (got, want) in enumerate(zip(fixed, wanted, strict=True)):
        assert error(got[0], want[0]) < 1e-5
        assert got[1] == want[1]
        if policy.mode == "none":
            assert error(got[0], [serve(model, prompt(rank), 0)[0]] * len(got[0])) < 1e-5
    assert policy.mode == "none" or len({tuple(dropped) for _, dropped in wanted}) > 1


def test_what_cannot_run_in_fixed_shapes() -> None:
    """Refused by name, before the model is changed."""
    model, fits = make_model("olmoe"), make_map((0, 1), num_nodes=1, gpus=2, slots=5)
    before = model.state_dict().keys()

    def refused(words: str, **options: Any) -> None:
        with pytest.raises(OptionError, match=words):
            Lockstep(1, 2).run(lambda mesh: attach(model, fits, mesh, **options))
        assert model.state_dict().keys() == before
        assert not any(module._forward_hooks for module in model.modules())

    refused("graph=True needs tokens=", graph=True)
    refused("nothing else takes it", tokens=4)
    refused("hops='hierarchical' needs counts", graph=True, tokens=4, hops="hierarchical")
    refused("'vllm-hash' on 1 nodes waits for the host", graph=True, tokens=4, choice="vllm-hash")
    refused("classes are told by marks", graph=True, tokens=4, capacity=CapacityPolicy(mode="drop", classes={0: 1.0}))

    def program(mesh: Mesh) -> None:
        attached = attach(copy.deepcopy(model), fits, mesh, graph=True, tokens=4, capacity=DROP)
        words = r"mark tokens inside attached\.eager"
        with pytest.raises(OptionError, match=words), attached.marked(load=torch.ones(4)):
            pass

    Lockstep(1, 2).run(program)


def test_transports_that_ask_the_host(tmp_path: Any) -> None:
    """One that compares sizes before each exchange on every device; gloo, and ranks in lockstep, on a GPU."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model, fits = make_model("olmoe"), make_map((0, 1), num_nodes=1, gpus=1, slots=8)
        with pytest.raises(OptionError, match="check=True compares sizes on the host; use NCCL"):
            attach(model, fits, torch_mesh(1, 1, check=True), graph=True, tokens=4)
        assert torch_mesh(1, 1).world.no_graph(torch.device("cpu")) is None
        assert torch_mesh(1, 1).world.no_graph(torch.device("cuda")) == "gloo takes rows through the host"
    finally:
        torch.distributed.destroy_process_group()
    lockstep = Lockstep(2, 2).mesh(0).world
    assert lockstep.no_graph(torch.device("cuda")) == "ranks in lockstep wait for one another on the host"
    assert lockstep.no_graph(torch.device("cpu")) is None


def test_ranks_with_other_shapes() -> None:
    """Told while they attach: no header travels later."""
    model, fits = make_model("olmoe"), make_map((0, 1))

    def program(mesh: Mesh) -> None:
        attach(copy.deepcopy(model), fits, mesh, graph=True, tokens=5 if mesh.rank == 3 else 4)

    outcomes = Lockstep(*SHAPE).try_run(program)
    assert all(isinstance(one, RankError) and one.ranks == (3,) for one in outcomes), outcomes
    assert "rank 3 has tokens of another size" in str(outcomes[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("policy", [CapacityPolicy(), DROP], ids=lambda one: one.mode)
def test_a_cuda_graph_captures_a_layer_of_a_model(policy: CapacityPolicy) -> None:
    """Router, dispatch, drop, experts and combine of one rank; replays serve other tokens as the eager layer does, and
    after a swap by another map."""
    model = make_model("olmoe")
    placement = make_map(layer_ids(model), num_nodes=1, gpus=1, slots=8)
    old, new = (
        replace(placement, slots_per_gpu=10, phy2log_LP=np.array([[*range(8), *twice]] * 2))
        for twice in ((0, 1), (2, 3))
    )

    @torch.no_grad()
    def program(mesh: Mesh) -> None:
        mine = copy.deepcopy(model).cuda()
        attached = attach(mine, old, mesh, capacity=policy, graph=True, tokens=TOKENS)
        block = mine.model.layers[0].mlp
        first, second = (torch.randn(2, TOKENS // 2, 32, device="cuda") for _ in range(2))
        given = first.clone()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            block(given)  # tables come to the device
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = block(given)
        for target in (old, new):
            attached.swap(target).run()
            for tokens in (second, first):
                given.copy_(tokens)
                graph.replay()
                with attached.eager():
                    torch.testing.assert_close(y, block(tokens), rtol=0, atol=1e-4)
        attached.check()

    Lockstep(1, 1).run(program)
