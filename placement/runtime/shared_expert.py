"""A layer's shared expert, which every token visits, computed while tokens travel to the other experts."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import torch
from torch import Tensor

from placement.core.huggingface import ExpertModules
from placement.errors import OptionError
from placement.runtime.deferred import Deferred

NAMES = ("shared_expert", "shared_experts", "shared_mlp")  # what transformers calls it, beside `experts`


class SharedExpert:
    """Takes the place of `module.forward`. `run` computes it for the tokens of the block's call that runs.

    Some blocks call it after the experts, with the block's input: the answer is there by then. Others call it before:
    they get a `Deferred`, which `run` fills. A block that does otherwise gets what it asks for when it asks. Where
    gradients are on, nothing is changed.
    """

    def __init__(self, block: Any, module: Any) -> None:
        self._module, self._forward = module, module.forward
        self._before = module.__dict__.get("forward")
        self._now = _Now()
        self._useful = True  # until the block asks for another tensor than its input
        self._hook = block.register_forward_pre_hook(self._enter, with_kwargs=True)
        module.forward = self._call

    def run(self) -> None:
        """What the block asked for, or will ask for, is computed; a second time there is nothing to do."""
        now = self._now
        if now.asked is not None:
            now.asked.resolve()
        elif now.given is not None and self._useful:
            now.ready = now.given, _version(now.given), self._forward(now.given)
        now.asked = now.given = None

    def remove(self) -> None:
        """The module is as it was."""
        self._hook.remove()
        if self._before is None:
            del self._module.forward
        else:
            self._module.forward = self._before

    def _enter(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call of the block begins."""
        if self._now.ready is not None:
            self._useful = False  # the last one did not ask
        given = args[0] if args else next(iter(kwargs.values()), None)
        self._now.begin(None if torch.is_grad_enabled() or not isinstance(given, Tensor) else given)

    def _call(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        now, plain = self._now, not args and not kwargs
        ready, now.ready = now.ready, None
        if ready is not None:
            given, version, answer = ready
            if plain and x is given and _version(x) == version:
                return answer
            self._useful = False
        elif now.given is not None and plain:  # the experts' turn is still to come
            now.asked = Deferred(x, partial(self._later, x, _version(x)))
            return now.asked
        out: Tensor = self._forward(x, *args, **kwargs)
        return out

    def _later(self, x: Tensor, version: int) -> Tensor:
        if _version(x) != version:
            raise OptionError("a block writes to its shared expert's input before it runs; attach with overlap=False")
        out: Tensor = self._forward(x)
        return out


class _Now(threading.local):
    """What the block's call that runs in this thread has been given, asked for, and got ready."""

    def __init__(self) -> None:
        self.begin(None)

    def begin(self, given: Tensor | None) -> None:
        self.given = given
        self.asked: Deferred | None = None
        self.ready: tuple[Tensor, int, Tensor] | None = None


def _version(x: Tensor) -> int:
    """Grows when the tensor is written to; tensors of inference mode do not count."""
    return 0 if x.is_inference() else x._version


def shared_experts(model: Any, modules: ExpertModules) -> list[SharedExpert]:
    """Of each layer, in order. Raises OptionError where a layer has none."""
    named = dict(model.named_modules())
    name_of = {id(module): name for name, module in named.items()}
    blocks = [named[name_of[id(experts)].rpartition(".")[0]] for experts in modules.experts_L]
    found = [[one for name, one in block.named_children() if name in NAMES] for block in blocks]
    for layer, block, ones in zip(modules.layer_ids, blocks, found, strict=True):
        if len(ones) != 1:
            raise OptionError(
                f"overlap=True computes shared experts while tokens travel, and layer {layer} ({type(block).__name__}) "
                f"has {len(ones)} beside its experts ({', '.join(NAMES)}); give overlap=False"
            )
    return [SharedExpert(block, one) for block, (one,) in zip(blocks, found, strict=True)]
