"""What the tokens of the forward that runs are: padding, tokens of decode, and what `Attached.marked` says of them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from placement.core.huggingface import argument_names, named
from placement.errors import OptionError


class Marks(NamedTuple):
    """Of the tokens of a forward: `priority` and `load` as `MoELayer` takes them, bool [T] where they are padding, and
    whether the forward has one token a row, as in decode."""

    priority: Tensor | None
    load: Tensor | None
    padding: Tensor | None
    decode: bool


NOTHING = Marks(None, None, None, False)


class ForwardMarks:
    """Hooks on a decoder of transformers, which see the shape of its tokens and a mask of padding."""

    def __init__(self, decoder: Any) -> None:
        self._names = argument_names(decoder.forward)
        self._now = _Now()
        self._hooks = [
            decoder.register_forward_pre_hook(self._before, with_kwargs=True),
            decoder.register_forward_hook(self._after, always_call=True),
        ]

    def say(self, priority: Tensor | None, load: Tensor | None) -> None:
        """What is told of the tokens of a prompt, in the order of the input; None: nothing."""
        given = {"priority": priority, "load": load}
        self._now.given = {name: one.reshape(-1) for name, one in given.items() if one is not None}
        highest = None if priority is None or not priority.numel() else int(priority.max())
        self._now.generated = {"priority": highest, "load": 1}

    def of(self, tokens: int, device: torch.device) -> Marks:
        """Of a call of experts with so many tokens. Raises OptionError if a mark is of another number of tokens."""
        padding = self._now.padding if self._now.padding is not None and len(self._now.padding) == tokens else None
        values: dict[str, Tensor | None] = dict.fromkeys(("priority", "load"))
        for name, mark in self._now.given.items():
            if len(mark) == tokens:
                values[name] = mark
            elif self._now.length == 1:  # what the model generates is text
                values[name] = torch.full((tokens,), self._now.generated[name] or 0, device=device)
            else:
                raise OptionError(f"{name} has {len(mark)} values and the forward {tokens} tokens; give one a token")
        return Marks(values["priority"], values["load"], padding, self._now.length == 1)

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _before(self, _: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given = named(self._names, args, kwargs)
        fed = given.get("input_ids") if given.get("input_ids") is not None else given.get("inputs_embeds")
        if fed is None:
            return
        mask: Any = given.get("attention_mask")
        self._now.length = int(fed.shape[1])
        if getattr(mask, "ndim", 0) == 2 and mask.shape[0] == fed.shape[0] and mask.shape[1] >= self._now.length:
            self._now.padding = (mask[:, -self._now.length :] == 0).reshape(-1)

    def _after(self, *_: Any) -> None:
        self._now.length, self._now.padding = 0, None


class _Now(threading.local):
    """What is known in this thread: forwards that take turns have one each."""

    def __init__(self) -> None:
        self.given: dict[str, Tensor] = {}
        self.generated: dict[str, int | None] = {}
        self.length, self.padding = 0, None

    padding: Tensor | None
