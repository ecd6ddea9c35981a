"""Gate scores of all experts, caught where a model's routers give them, and what the model makes weights of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from placement.core.huggingface import ExpertModules, library
from placement.errors import InputError, OptionError

OTHERWISE = "mode='drop' with keep='weight'"
ALWAYS_SCALED = ("mixtral", "gpt_oss")  # weights of a top-k set add up to 1, and no flag says so


def scales_weights(model: Any) -> bool:
    """Whether a model scales the weights of a top-k set to one sum for all tokens. Raises OptionError if not known."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    scaled = getattr(config, "norm_topk_prob", config.model_type in ALWAYS_SCALED or None)
    if scaled is None:
        raise OptionError(
            f"whether {config.model_type} scales the weights of its top-k sets is not known, so renormalize=None "
            "cannot follow it; give renormalize=True or False"
        )
    return bool(scaled)


class RouterScores:
    """Hooks on the routers of transformers 5, whose first output is the logits of all experts [T, E]."""

    def __init__(self, model: Any, modules: ExpertModules) -> None:
        named = dict(model.named_modules())
        name_of = {id(module): name for name, module in named.items()}
        self._scores: dict[int, Tensor] = {}
        self._hooks = []
        self._num_experts = modules.num_experts
        for index, experts in enumerate(modules.experts_L):
            block = named[name_of[id(experts)].rpartition(".")[0]]
            routers = [one for one in block.children() if type(one).__name__.endswith(("Router", "Gate"))]
            if len(routers) != 1:
                self.remove()
                raise OptionError(
                    f"layer {modules.layer_ids[index]} has {len(routers)} routers beside its experts; a capacity by "
                    f"scores needs the one that scores all experts; use {OTHERWISE}"
                )
            self._hooks.append(routers[0].register_forward_hook(self._catch(index)))

    def of(self, index: int) -> Callable[[], Tensor]:
        """Scores of the layer in the forward that runs."""

        def scores() -> Tensor:
            if index not in self._scores:
                raise InputError(
                    f"experts number {index} were called without their router, whose scores the capacity goes by; call "
                    f"the layer that both are in, or use {OTHERWISE}"
                )
            return self._scores.pop(index)

        return scores

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _catch(self, index: int) -> Any:
        def catch(router: Any, _args: Any, output: Any) -> None:
            logits = output[0] if isinstance(output, tuple) else output
            shape = tuple(getattr(logits, "shape", ()))
            if len(shape) != 2 or shape[1] != self._num_experts or not logits.is_floating_point():
                raise OptionError(
                    f"{type(router).__name__} of {library()} gives {list(shape)} first, and logits of all "
                    f"{self._num_experts} experts are needed, [T, E], for a capacity by scores; use {OTHERWISE}"
                )
            logits = logits.detach().float()
            # routers with a correction bias choose by sigmoid (DeepSeek-V3), all others by softmax
            sigmoid = hasattr(router, "e_score_correction_bias")
            self._scores[index] = logits.sigmoid() if sigmoid else logits.softmax(dim=-1)

        return catch
