"""A model whose experts run on several ranks gives the logits that it gives on one."""

from __future__ import annotations

import copy
import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import FAMILIES, layer_ids, make_model, transformers
from moe import make_placement, torch
from processes import run_processes

from placement import Model, Placement
from placement.errors import InputError, MapError, OptionError
from placement.runtime import Attached, CapacityPolicy, Lockstep, Mesh, attach, load_sharded, torch_mesh
from placement.runtime.checkpoint import apply_map
from placement.runtime.layer_options import LayerOptions

SHAPE = (2, 2)
STEPS = 3


def make_map(
    ids: tuple[int, ...], *, seed: int = 0, num_nodes: int = 2, gpus: int = 2, slots: int = 3, experts: int = 8
) -> Placement:
    """Eight experts in twelve slots."""
    found = make_placement(num_nodes, gpus, slots, experts, 2, seed=seed, layers=len(ids))
    return Placement(
        model=Model(name="m", layer_ids=ids, num_experts=experts, top_k=2),
        num_nodes=num_nodes,
        gpus_per_node=gpus,
        slots_per_gpu=slots,
        phy2log_LP=found.phy2log_LP,
    )


def prompt(rank: int) -> Any:
    """Ranks have batches of different shapes."""
    generator = torch.Generator().manual_seed(rank)
    return torch.randint(3, 64, (1 + rank % 2, 4 + rank), generator=generator)


@torch.no_grad()
def serve(model: Any, tokens: Any, steps: int = STEPS) -> list[Any]:
    """Logits of the prompt, then of greedy decoding with the cache."""
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    found, cache = [], None
    for _ in range(1 + steps):
        out = model(input_ids=tokens, use_cache=True, **{name: cache})
        found.append(out.logits)
        tokens, cache = out.logits[:, -1:].argmax(dim=-1), out[name]
    return found


def error(got: list[Any], want: list[Any]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(got, want, strict=True))


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


def test_models_and_maps_that_do_not_fit() -> None:
    """Named before anything is changed."""
    model = make_model("olmoe")

    def on_first(program: Any) -> None:
        Lockstep(1, 1).run(program)

    with pytest.raises(MapError, match=r"8 experts in layers \[0, 1\]; the map is for 8 in layers \[0, 2\]"):
        on_first(lambda mesh: attach(model, make_map((0, 2)), mesh))
    with pytest.raises(MapError, match="2 nodes x 2 GPUs and the mesh has 1 x 1"):
        on_first(lambda mesh: attach(model, make_map((0, 1)), mesh))
    with pytest.raises(InputError, match="no Hugging Face model"):
        on_first(lambda mesh: attach(torch.nn.Linear(2, 2), make_map((0, 1)), mesh))
    fits = make_map((0, 1), num_nodes=1, gpus=1, slots=8)
    before = model.state_dict().keys()
    for wrong in ({"hops": "round"}, {"capacity": CapacityPolicy(mode="expanded", gamma={0: 1.0})}):
        with pytest.raises(OptionError):
            on_first(lambda mesh, wrong=wrong: attach(model, fits, mesh, **wrong))
        assert model.state_dict().keys() == before
        assert not any(module._forward_hooks for module in model.model.layers[0].mlp.modules())
    twice = copy.deepcopy(model)
    on_first(lambda mesh: attach(twice, fits, mesh))
    with pytest.raises(OptionError, match="attached already"):
        on_first(lambda mesh: attach(twice, fits, mesh))
    odd = copy.deepcopy(model)
    odd.model.layers[1].mlp.experts.register_parameter("scale", torch.nn.Parameter(torch.ones(8)))
    with pytest.raises(InputError, match="load the model without quantization"):
        on_first(lambda mesh: attach(odd, fits, mesh))


@pytest.mark.parametrize("function", [attach, load_sharded])
def test_options_are_those_of_the_layers(function: Any) -> None:
    """Users see each option, with its type and default, in the signature; none is missing or another than is served."""
    parameters = inspect.signature(function).parameters
    for option in fields(LayerOptions):
        found = parameters[option.name]
        assert (found.kind, found.annotation, found.default) == (found.KEYWORD_ONLY, option.type, option.default)


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


def test_a_library_that_changed_its_experts() -> None:
    """Arguments in another order are told apart; flags that are new or gone, and other router outputs, are refused."""
    model, fits = make_model("olmoe"), make_map((0, 1), num_nodes=1, gpus=1, slots=8)
    wanted = serve(model, prompt(0))

    def on_one(program: Any) -> Any:
        return Lockstep(1, 1).run(program)[0]

    def reordered(mesh: Mesh) -> list[Any]:
        mine = copy.deepcopy(model)
        for layer in mine.model.layers:
            inner = type(layer.mlp.experts).forward

            def forward(
                top_k_weights: Any, x: Any, top_k_index: Any, module: Any = layer.mlp.experts, inner: Any = inner
            ) -> Any:
                return inner(module, x, top_k_index, top_k_weights)

            layer.mlp.experts.forward = forward
            layer.mlp.experts.register_forward_pre_hook(lambda _m, args: (args[2], args[0], args[1]))
        attach(mine, fits, mesh)
        return serve(mine, prompt(0))

    assert error(on_one(reordered), wanted) < 1e-5

    def wrong_call(mesh: Mesh) -> None:
        mine = copy.deepcopy(model)
        attach(mine, fits, mesh)
        mine.model.layers[0].mlp.experts(torch.ones(4, 32), torch.ones(4, 2), torch.ones(4, 2))

    with pytest.raises(InputError, match="one matrix of ids, top_k_index or"):
        on_one(wrong_call)
    for change, words in (
        ({"has_scale": True}, "has has_scale and lacks nothing"),
        ({"is_transposed": None}, "lacks is_tr"),
    ):
        odd = copy.deepcopy(model)
        for name, value in change.items():
            if value is None:
                delattr(odd.model.layers[1].mlp.experts, name)
            else:
                setattr(odd.model.layers[1].mlp.experts, name, value)
        with pytest.raises(InputError, match=f"layer 1 .*transformers {transformers.__version__}.*{words}"):
            on_one(lambda mesh, odd=odd: attach(odd, fits, mesh))

    def other_router(mesh: Mesh) -> None:
        mine = copy.deepcopy(model)
        attach(mine, fits, mesh, capacity=CapacityPolicy(mode="expanded", gamma=1.0, max_extra=1))
        mine.model.layers[0].mlp.gate.register_forward_hook(lambda _m, _a, out: out[::-1], prepend=True)
        serve(mine, prompt(0), 0)

    with pytest.raises(OptionError, match=r"gives \[4, 2\] first, and logits of all 8 experts"):
        on_one(other_router)
