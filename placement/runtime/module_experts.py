"""The computation of a transformers 5 expert module on the weights of a rank's slots."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from placement.core.huggingface import library
from placement.errors import InputError
from placement.runtime.experts import grouped_mm
from placement.runtime.slot_weights import SlotWeights

FLAGS = frozenset(("has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "is_concatenated"))
NEEDED = ("has_bias", "is_transposed")  # later attributes are optional: a module without them is of the old kind
WEIGHTS = ("gate_up_proj", "up_proj", "down_proj", "gate_up_proj_bias", "up_proj_bias", "down_proj_bias")


class ModuleExperts:
    """Outputs of rows [A, D] in slot order as `module` computes them: its flags, its gate, the weights of `slots`."""

    def __init__(self, module: Any, slots: SlotWeights) -> None:
        self._module, self._slots = module, slots

    @torch.no_grad()
    def __call__(self, rows: Tensor, counts: Tensor) -> Tensor:
        return self._outputs(rows, partial(self._linear, counts))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._slots.device

    @property
    def hidden(self) -> int:
        """Hidden size."""
        return self._weight("down_proj").shape[2]

    @torch.no_grad()
    def padded(self, rows_SCD: Tensor) -> Tensor:
        """Outputs where every slot has equally many rows [S, C, D], some of them blank: static shapes."""
        return self._outputs(rows_SCD.flatten(0, 1), self._linear_padded).view(rows_SCD.shape)

    def _outputs(self, rows: Tensor, linear: Callable[[Tensor, str], Tensor]) -> Tensor:
        module = self._module
        gated = "gate_up_proj" in self._slots.tensors
        inner = linear(rows, "gate_up_proj" if gated else "up_proj")
        inner = module._apply_gate(inner) if gated else module.act_fn(inner)
        out = linear(inner, "down_proj")
        return module.post_expert_norm(out) if getattr(module, "has_post_expert_norm", False) else out

    def _linear(self, counts: Tensor, rows: Tensor, name: str) -> Tensor:
        out = grouped_mm(rows, self._weight(name), counts)
        if not self._module.has_bias:
            return out
        bias = self._slots.tensors[f"{name}_bias"]
        return out + bias.repeat_interleave(counts, dim=0, output_size=len(rows))

    def _linear_padded(self, rows_AX: Tensor, name: str) -> Tensor:
        weight = self._weight(name)
        out = torch.bmm(rows_AX.view(len(weight), -1, rows_AX.shape[1]), weight)
        if self._module.has_bias:
            out = out + self._slots.tensors[f"{name}_bias"][:, None]
        return out.flatten(0, 1)  # the module's own gate is made for rows

    def _weight(self, name: str) -> Tensor:
        """Of all slots, [S, X, Y], to multiply rows [A, X] with."""
        weight = self._slots.tensors[name]
        return weight if self._module.is_transposed else weight.transpose(1, 2)


def check_module(module: Any, name: str) -> None:
    """Raise InputError for a module that computes in a way that is not known, or has other weights: quantized ones."""
    names = [key for key, value in module._parameters.items() if value is not None]
    odd = [key for key in names if key not in WEIGHTS]
    if odd or "down_proj" not in names:
        raise InputError(
            f"{name} ({type(module).__name__}) has weights {', '.join(names) or 'none'}; only {', '.join(WEIGHTS)} are "
            "understood; load the model without quantization"
        )
    needed = (*NEEDED, "_apply_gate" if "gate_up_proj" in names else "act_fn")
    missing = [flag for flag in needed if not hasattr(module, flag)]
    new = [key for key, value in vars(module).items() if value is True and key.startswith(("has_", "is_"))]
    new = [key for key in new if key not in FLAGS]
    if missing or new:
        raise InputError(
            f"{name} ({type(module).__name__}) of {library()} has {', '.join(new) or 'nothing new'} and lacks "
            f"{', '.join(missing) or 'nothing'}, so that how its experts compute is not known; use a version that "
            "was tested"
        )


def hidden_size(module: Any) -> int:
    return int(module.down_proj.shape[2 if module.is_transposed else 1])


def weights_of_module(module: Any, held: list[int]) -> SlotWeights:
    """Copies of the weights of the experts `held`, one for each slot."""
    chosen = {key: value for key, value in module._parameters.items() if value is not None}
    return SlotWeights({key: value.detach()[held] for key, value in chosen.items()})
