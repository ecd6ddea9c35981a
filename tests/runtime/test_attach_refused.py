"""What `attach` refuses before anything is changed, and what its signature shows."""

from __future__ import annotations

import copy
import inspect
from dataclasses import fields
from typing import Any

import pytest
from models import make_model, transformers
from moe import torch
from served_models import error, make_map, prompt, serve

from placement.errors import InputError, MapError, OptionError
from placement.runtime import CapacityPolicy, Lockstep, Mesh, attach, load_sharded
from placement.runtime.layer_options import LayerOptions


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
