"""Where the experts of a Hugging Face model are: one module a layer that is called with (hidden, ids, weights)."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from placement.errors import InputError
from placement.model import Model

SUPPORTED = "OLMoE, Mixtral, Qwen2-MoE, Qwen3-MoE, DeepSeek-V2, DeepSeek-V3, GPT-OSS and others of transformers 5"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertModules:
    """`decoder` is run once in every forward; `experts_L` are its expert modules and `layer_ids` their layers."""

    decoder: Any
    experts_L: tuple[Any, ...]
    layer_ids: tuple[int, ...]
    num_experts: int
    num_groups: int | None

    def model(self, name: str, top_k: int) -> Model:
        return Model(
            name=name,
            layer_ids=self.layer_ids,
            num_experts=self.num_experts,
            top_k=top_k,
            num_groups=self.num_groups,
        )


def find_experts(model: Any) -> ExpertModules:
    """The expert modules of a `transformers` model. Raises InputError where it has none that are understood.

    transformers 5 decorates each class of experts (`use_experts_implementation`); its instances have a flag
    `_is_expert_parallel` and get ids and weights as second and third argument, whichever router chose them.
    """
    config = getattr(model, "config", None)
    what = f"{type(model).__name__} (model_type={getattr(config, 'model_type', None)!r})"
    if not hasattr(model, "named_modules") or config is None:
        raise InputError(f"{what} is no Hugging Face model; give a loaded one of {SUPPORTED}")
    found = [(name, module) for name, module in model.named_modules() if hasattr(module, "_is_expert_parallel")]
    layer_ids = tuple(next((int(part) for part in name.split(".") if part.isdigit()), -1) for name, _ in found)
    # the innermost module that is given tokens: wrappers around it may be by-passed by `generate`
    around = [module for name, module in model.named_modules() if all(_inside(name, inner) for inner, _ in found)]
    decoders = [module for module in around if "input_ids" in inspect.signature(module.forward).parameters]
    if not found or not decoders or any(a >= b for a, b in zip((-1, *layer_ids), layer_ids, strict=False)):
        raise InputError(f"{what} has no expert layers that are understood; models that have: {SUPPORTED}")
    if any(module._is_expert_parallel for _, module in found):
        raise InputError(f"{what} runs expert-parallel, where ids are those of one rank; load it without that")
    sizes = {int(module.num_experts) for _, module in found}
    if len(sizes) > 1:
        raise InputError(f"{what} has layers of {sorted(sizes)} experts; traces and maps are of layers of one size")
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    groups = getattr(text, "n_group", None) or 1
    return ExpertModules(
        decoder=decoders[-1],
        experts_L=tuple(module for _, module in found),
        layer_ids=layer_ids,
        num_experts=sizes.pop(),
        num_groups=groups if groups > 1 else None,
    )


def _inside(name: str, inner: str) -> bool:
    return not name or inner.startswith(f"{name}.")
