"""Where the experts of a Hugging Face model are: one module a layer that is called with (hidden, ids, weights)."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from placement.core.model import Model
from placement.errors import InputError

SUPPORTED = "OLMoE, Mixtral, Qwen2-MoE, Qwen3-MoE, DeepSeek-V2, DeepSeek-V3, GPT-OSS and others of transformers 5"
TESTED = "5.0 to 5.24"
# what transformers calls the ids and the weights that it gives experts
IDS, WEIGHTS = ("top_k_index", "router_indices"), ("top_k_weights", "routing_weights")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertModules:
    """`decoder` is run once in every forward; `experts_L` are its expert modules and `layer_ids` their layers.

    num_hidden_layers  what the configuration says; None where the number cannot be that of the decoder's layers
    """

    decoder: Any
    experts_L: tuple[Any, ...]
    layer_ids: tuple[int, ...]
    num_experts: int
    num_groups: int | None
    num_hidden_layers: int | None

    def model(self, name: str, top_k: int) -> Model:
        return Model(
            name=name,
            layer_ids=self.layer_ids,
            num_experts=self.num_experts,
            top_k=top_k,
            num_groups=self.num_groups,
            num_hidden_layers=self.num_hidden_layers,
        )


class ExpertsCall(NamedTuple):
    """What experts are called with: hidden states (None where a call has none), ids and weights [T, K]."""

    hidden: Any
    ids_TK: Any
    weights_TK: Any


def library() -> str:
    """`transformers` with the version that runs, and those that were tested, for messages."""
    version = getattr(sys.modules.get("transformers"), "__version__", "of an unknown version")
    return f"transformers {version} (tested: {TESTED})"


def argument_names(forward: Any) -> tuple[str, ...]:
    """The arguments of `forward` that may be given by position, in order."""
    takes = inspect.signature(forward).parameters.values()
    return tuple(one.name for one in takes if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD))


def named(names: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name. Raises InputError if one has no name, or two have the same."""
    if len(args) > len(names) or (kwargs and not kwargs.keys().isdisjoint(names[: len(args)])):
        raise InputError(
            f"{library()} makes a call with {len(args)} arguments by position and {', '.join(kwargs) or 'none'} by "
            f"name where {', '.join(names)} are taken; use a version that was tested"
        )
    return dict(zip(names, args, strict=False), **kwargs)


def read_experts_call(names: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ExpertsCall:
    """The ids and weights that a call of experts is given: by name, else the only ones that can be these.

    Args:
        names: the experts' own, of what comes by position
    Raises:
        InputError: ids and weights cannot be told apart from other arguments
    """
    given = named(names, args, kwargs)
    ids = [name for name in IDS if name in given] or [name for name, value in given.items() if _is_matrix(value, "int")]
    shape = given[ids[0]].shape if len(ids) == 1 and _is_matrix(given[ids[0]], "int") else None
    weights = [name for name in WEIGHTS if name in given] or [
        name for name, value in given.items() if _is_matrix(value, "float") and value.shape == shape
    ]
    if shape is None or len(weights) != 1 or getattr(given[weights[0]], "shape", None) != shape:
        told = ", ".join(f"{name} {list(getattr(value, 'shape', ()))}" for name, value in given.items())
        raise InputError(
            f"{library()} calls experts with {told}; one matrix of ids, {' or '.join(IDS)}, and one of weights in the "
            f"same shape, {' or '.join(WEIGHTS)}, are understood; use a version that was tested"
        )
    hidden = next((value for name, value in given.items() if name != ids[0] and name != weights[0]), None)
    return ExpertsCall(hidden=hidden, ids_TK=given[ids[0]], weights_TK=given[weights[0]])


def find_experts(model: Any) -> ExpertModules:
    """The expert modules of a `transformers` model. Raises InputError where it has none that are understood.

    Experts are modules that are given the ids and weights that a router chose, under names that are known, or that have
    the flag `_is_expert_parallel` of newer versions.
    """
    config = getattr(model, "config", None)
    what = f"{type(model).__name__} (model_type={getattr(config, 'model_type', None)!r})"
    if not hasattr(model, "named_modules") or config is None:
        raise InputError(f"{what} is no Hugging Face model; give a loaded one of {SUPPORTED}")
    found = [(name, module) for name, module in model.named_modules() if _is_experts(module)]
    layer_ids = tuple(next((int(part) for part in name.split(".") if part.isdigit()), -1) for name, _ in found)
    # the innermost module that is given tokens: wrappers around it may be by-passed by `generate`
    around = [module for name, module in model.named_modules() if all(_inside(name, inner) for inner, _ in found)]
    decoders = [module for module in around if "input_ids" in inspect.signature(module.forward).parameters]
    if not found or not decoders or any(a >= b for a, b in zip((-1, *layer_ids), layer_ids, strict=False)):
        raise InputError(
            f"{what} has no expert layers that are understood by {library()}; models that have: {SUPPORTED}"
        )
    if any(getattr(module, "_is_expert_parallel", False) for _, module in found):
        raise InputError(f"{what} runs expert-parallel, where ids are those of one rank; load it without that")
    if any(not isinstance(getattr(module, "num_experts", None), int) for _, module in found):
        raise InputError(f"{what} has experts without num_experts under {library()}; models that have: {SUPPORTED}")
    sizes = {int(module.num_experts) for _, module in found}
    if len(sizes) > 1:
        raise InputError(f"{what} has layers of {sorted(sizes)} experts; traces and maps are of layers of one size")
    text: Any = config.get_text_config() if hasattr(config, "get_text_config") else config
    if hasattr(text, "topk_group") and not hasattr(text, "n_group"):
        raise InputError(
            f"{what} chooses experts by groups and has no n_group under {library()}; {SUPPORTED} are known"
        )
    groups, hidden = getattr(text, "n_group", None) or 1, getattr(text, "num_hidden_layers", None)
    return ExpertModules(
        decoder=decoders[-1],
        experts_L=tuple(module for _, module in found),
        layer_ids=layer_ids,
        num_experts=sizes.pop(),
        num_groups=groups if groups > 1 else None,
        num_hidden_layers=hidden if isinstance(hidden, int) and hidden > layer_ids[-1] else None,
    )


def _is_experts(module: Any) -> bool:
    takes = inspect.signature(module.forward).parameters
    named = any(name in takes for name in IDS) and any(name in takes for name in WEIGHTS)
    return named or hasattr(module, "_is_expert_parallel")


def _is_matrix(value: Any, kind: str) -> bool:
    return getattr(value, "ndim", 0) == 2 and _kind(value.dtype) == kind


@cache
def _kind(dtype: Any) -> str:
    """`int`, `float` or what else the type of a tensor's values is called, without its size."""
    return str(dtype).rpartition(".")[2].lstrip("bu").rstrip("0123456789")


def _inside(name: str, inner: str) -> bool:
    return not name or inner.startswith(f"{name}.")
