"""A model whose experts run on several ranks gives the logits that it gives on one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import FAMILIES, layer_ids, make_model
from moe import torch
from processes import run_processes
from served_models import SHAPE, STEPS, error, make_map, prompt, serve

from placement.errors import MapError, OptionError
from placement.runtime import Attached, CapacityPolicy, Lockstep, Mesh, attach, torch_mesh
from placement.runtime.checkpoint import apply_map


@pytest.mark.parametrize("hops", ["flat", "hierarchical"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_logits_are_those_of_the_model(family: str, hops: str) -> None:
    """Prefill and decode on four ranks with replicas, within 1e-5; after detach the same bits as before attach."""
    model = make_model(family)
    wanted = [serve(model, prompt(rank)) for rank in range(4)]
    assert all(float(logits.std()) > 0.1 for logits in wanted[0])  # else every model would do
    placement = make_map(layer_ids(model))

    def program(mesh: Mesh) -> tuple[list[Any], list[Any]]:
        mine = copy.deepcopy(model)
        state = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
        attached = attach(mine, placement, mesh, hops=hops)
        assert not any(".experts.gate_up_proj" in name for name in mine.state_dict())
        got = serve(mine, prompt(mesh.rank))
        assert all(stats is not None for stats in attached.stats)
        attached.detach()
        assert all(torch.equal(tensor, state[name]) for name, tensor in mine.state_dict().items())
        assert set(state) == set(mine.state_dict())
        return got, serve(mine, prompt(mesh.rank))

    for rank, (got, after) in enumerate(Lockstep(*SHAPE).run(program)):
        assert error(got, wanted[rank]) < 1e-5
        assert error(after, wanted[rank]) == 0


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss"])
def test_experts_in_bf16(family: str) -> None:
    """The first expert module within 2e-2 of its largest output; logits are no measure, since routers may tip over."""
    model = make_model(family).to(torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 32, generator=generator).to(torch.bfloat16)
    weights, ids = torch.rand(40, 8, generator=generator).to(torch.bfloat16).topk(2)
    with torch.no_grad():
        wanted = model.model.layers[0].mlp.experts(x, ids, weights)

    def program(mesh: Mesh) -> Any:
        mine = copy.deepcopy(model)
        attach(mine, make_map(layer_ids(model)), mesh, hops="hierarchical")
        return mine.model.layers[0].mlp.experts(x, ids, weights)

    for got in Lockstep(*SHAPE).run(program):
        assert got.dtype == torch.bfloat16
        assert error([got], [wanted]) < 2e-2 * float(wanted.abs().max())


@pytest.mark.parametrize("hops", ["flat", "hierarchical"])
def test_experts_of_states_that_travel_as_float8(hops: str) -> None:
    """Rows are a third as long, and outputs within a few percent of the largest; a bound of 1e-3 would not hold."""
    model = make_model("olmoe")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 32, generator=generator)
    weights, ids = torch.rand(40, 8, generator=generator).topk(2)
    with torch.no_grad():
        wanted = model.model.layers[0].mlp.experts(x, ids, weights)

    def program(mesh: Mesh, fp8: bool) -> tuple[Any, int]:
        mine = copy.deepcopy(model)
        attached = attach(mine, make_map(layer_ids(model)), mesh, hops=hops, fp8=fp8)
        out = mine.model.layers[0].mlp.experts(x, ids, weights)
        assert attached.stats[0] is not None
        return out, attached.stats[0].across_bytes

    long = Lockstep(*SHAPE).run(lambda mesh: program(mesh, False))
    for (got, sent), (_, whole) in zip(Lockstep(*SHAPE).run(lambda mesh: program(mesh, True)), long, strict=True):
        assert 1e-3 < error([got], [wanted]) / float(wanted.abs().max()) < 0.08
        assert sent < whole


def test_marked_tokens() -> None:
    """Priorities and loads of a forward reach the policy: text is kept where images are dropped; afterwards none do."""
    model = make_model("olmoe")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 20, 32, generator=generator)
    weights, ids = torch.full((40, 2), 0.5), torch.tensor([[0, 1]]).expand(40, 2)
    text = torch.arange(40).view(2, 20) % 4 == 0

    def program(mesh: Mesh) -> list[Any]:
        mine = copy.deepcopy(model)
        policy = CapacityPolicy(mode="drop", gamma=0.2, keep="weight")
        attached = attach(mine, make_map(layer_ids(model)), mesh, capacity=policy)
        experts = mine.model.layers[0].mlp.experts

        def served() -> Any:
            kept = (experts(x.view(40, 32), ids, weights) != 0).any(dim=1)
            return torch.stack([kept[text.flatten()].sum(), kept[~text.flatten()].sum()])

        found = [served()]
        with attached.marked(priority=text):
            found.append(served())
        with attached.marked(priority=text, load=torch.where(text, 0.001, 1.0)):
            found.append(served())
        assert torch.equal(served(), found[0])
        words = "priority has 40 values and the forward 39 tokens; give one a token"
        with attached.marked(priority=text), pytest.raises(OptionError, match=words):
            experts(x.view(40, 32)[:39], ids[:39], weights[:39])
        return found

    plain, classed, light = (sum(one).tolist() for one in zip(*Lockstep(*SHAPE).run(program), strict=True))
    assert plain[1] > plain[0] > 0
    assert classed[0] > 0 == classed[1]
    assert light[0] == 40


def test_the_experts_are_those_of_the_map() -> None:
    """Protects the test above from a model that goes on by itself: one slot with other weights changes the logits."""
    model = make_model("olmoe")
    wanted = serve(model, prompt(0))

    def program(mesh: Mesh) -> list[Any]:
        mine = copy.deepcopy(model)
        attached = attach(mine, make_map(layer_ids(model)), mesh)
        if mesh.rank == 1:
            attached.slots_L[0].tensors["down_proj"].mul_(2)
        return serve(mine, prompt(0))

    assert error(Lockstep(*SHAPE).run(program)[0], wanted) > 1e-3


def test_a_rank_that_has_nothing_to_do_joins() -> None:
    """Rank 3 has no request at all, rank 2 ends early."""
    model = make_model("qwen3_moe")
    placement = make_map(layer_ids(model))
    steps = [STEPS, STEPS, 1, -1]

    def program(mesh: Mesh) -> list[Any]:
        mine = copy.deepcopy(model)
        attached = attach(mine, placement, mesh)
        got = serve(mine, prompt(mesh.rank), steps[mesh.rank])
        for _ in range(STEPS - steps[mesh.rank]):
            attached.join()
        return got

    for rank, got in enumerate(Lockstep(*SHAPE).run(program)[:3]):
        assert error(got, serve(model, prompt(rank), steps[rank])) < 1e-5


@pytest.mark.parametrize("family", ["olmoe", "mixtral", "deepseek_v3", "gpt_oss"])
def test_weights_from_the_files_of_apply(family: str, tmp_path: Path) -> None:
    """The checkpoint as transformers saves it, cut by the map, read slot by slot; the model has no experts itself."""
    model = make_model(family)
    model.save_pretrained(tmp_path / "in")
    placement = make_map(layer_ids(model))
    apply_map(tmp_path / "in", placement, tmp_path / "out")
    wanted = [serve(model, prompt(rank)) for rank in range(4)]

    def program(mesh: Mesh) -> list[Any]:
        mine = copy.deepcopy(model)
        for name, module in mine.named_modules():
            if name.endswith(".experts"):
                module.to("meta")
        with pytest.raises(OptionError, match="give checkpoint="):
            attach(mine, placement, mesh)
        attached = attach(mine, placement, mesh, checkpoint=tmp_path / "out", keep_weights=False)
        got = serve(mine, prompt(mesh.rank))
        with pytest.raises(OptionError, match="were not kept"):
            attached.detach()
        return got

    for rank, got in enumerate(Lockstep(*SHAPE).run(program)):
        assert error(got, wanted[rank]) < 1e-5
    with pytest.raises(MapError, match="cut by another map"):
        Lockstep(*SHAPE).run(
            lambda mesh: attach(model, make_map(layer_ids(model), seed=1), mesh, checkpoint=tmp_path / "out")
        )


@pytest.mark.parametrize("mode", ["drop", "expanded"])
@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3"])
def test_capacity_holds(family: str, mode: str) -> None:
    """No slot takes more than its limit; without a limit that binds, `drop` changes nothing."""
    model = make_model(family)
    placement = make_map(layer_ids(model))

    def program(mesh: Mesh, gamma: float) -> tuple[list[Any], list[int], int]:
        mine = copy.deepcopy(model)
        policy = CapacityPolicy(mode=mode, gamma=gamma, max_extra=1)
        attached = attach(mine, placement, mesh, capacity=policy)
        got = serve(mine, prompt(mesh.rank), 0)
        stats = [one for one in attached.stats if one is not None]
        attached.detach()
        assert error(serve(mine, prompt(mesh.rank), 0), serve(model, prompt(mesh.rank), 0)) == 0
        return got, stats[0].load_P.tolist(), int(stats[0].dropped)

    tokens = sum(prompt(rank).numel() for rank in range(4))
    tight = Lockstep(*SHAPE).run(lambda mesh: program(mesh, 1.0))
    limit = int(np.ceil(tokens * 2 / 8))
    assert max(max(loads) for _, loads, _ in tight) <= limit
    assert sum(dropped for _, _, dropped in tight) > 0
    if mode == "drop":
        for rank, (got, _, _) in enumerate(Lockstep(*SHAPE).run(lambda mesh: program(mesh, 100.0))):
            assert error(got, serve(model, prompt(rank), 0)) < 1e-5


def test_between_processes(tmp_path: Path) -> None:
    """The same with gloo."""
    model = make_model("mixtral")
    placement = make_map(layer_ids(model), num_nodes=1, slots=5)

    def program(rank: int) -> list[Any]:
        mesh = torch_mesh(1, 2, timeout_s=20)
        attached = attach(model, placement, mesh)
        assert isinstance(attached, Attached)
        return [logits.numpy() for logits in serve(model, prompt(rank))]

    results = run_processes(2, tmp_path, program)
    for rank, got in enumerate(results):
        assert not isinstance(got, Exception), got
        assert error([torch.from_numpy(one) for one in got], serve(model, prompt(rank))) < 1e-5
