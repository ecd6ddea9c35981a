"""Gate scores of all experts, caught where a model's routers give them; Expanded Drop needs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from placement.core.huggingface import ExpertModules, library
from placement.errors import OptionError


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
                    f"layer {modules.layer_ids[index]} has {len(routers)} routers beside its experts; capacity mode "
                    "'expanded' needs the one that scores all experts; use mode='drop'"
                )
            self._hooks.append(routers[0].register_forward_hook(self._catch(index)))

    def of(self, index: int) -> Callable[[], Tensor]:
        """Scores of the layer in the forward that runs."""
        return lambda: self._scores.pop(index)

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
                    f"{self._num_experts} experts are needed, [T, E], for capacity mode 'expanded'; use mode='drop'"
                )
            logits = logits.detach().float()
            # routers with a correction bias choose by sigmoid (DeepSeek-V3), all others by softmax
            sigmoid = hasattr(router, "e_score_correction_bias")
            self._scores[index] = logits.sigmoid() if sigmoid else logits.softmax(dim=-1)

        return catch
