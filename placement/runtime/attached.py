"""A model that is attached, on one rank: what the user holds of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from placement.core.placement import Placement
from placement.errors import OptionError
from placement.runtime.attached_layer import AttachedLayer
from placement.runtime.forward_marks import ForwardMarks
from placement.runtime.layer import StepStats
from placement.runtime.slot_weights import SlotWeights
from placement.runtime.swap import Swap
from placement.runtime.transport.base import Mesh
from placement.runtime.turns import Turns

Result = TypeVar("Result")


class Hook(Protocol):
    """What was put into a model: `remove` takes it out."""

    def remove(self) -> None: ...


class Attached:
    """What `attach` gives: one rank's model in the group. `placement` is the map in force."""

    def __init__(
        self,
        placement: Placement,
        mesh: Mesh,
        layers: list[AttachedLayer],
        marks: ForwardMarks | None,
        hooks: Sequence[Hook],
        turns: Turns,
    ) -> None:
        self.mesh, self.layers, self._marks, self._hooks, self._turns = mesh, layers, marks, hooks, turns
        self.use(placement)  # may raise: the model is changed after it
        for layer in layers:
            layer.take_over()

    @property
    def stats(self) -> list[StepStats | None]:
        """Of the last forward or `join`, one for each layer."""
        return [layer.stats for layer in self.layers]

    @property
    def slots_L(self) -> list[SlotWeights]:
        """The weights in this rank's slots, by layer."""
        return [layer.slots for layer in self.layers]

    def use(self, placement: Placement) -> None:
        """Serve by a map of which the slots have the weights on all ranks: `Swap` calls it."""
        self.placement = placement
        for layer in self.layers:
            layer.use(placement)

    @contextmanager
    def marked(self, *, priority: Tensor | None = None, load: Tensor | None = None) -> Iterator[None]:
        """Forwards inside have tokens with these `priority` and `load`, in the order of the input; see `MoELayer`.

        In `generate` they are those of the prompt: the tokens that follow it, one a row in every forward, have the
        highest `priority` of the prompt and the load 1. Without a capacity policy there is nothing to mark.

        Raises:
            OptionError: Forwards are for graphs, in which marks are not seen; `eager` is there for it.
        """
        if self._marks is None:
            yield
            return
        if any(layer.fixed is not None and not layer.eager for layer in self.layers):
            raise OptionError(
                "marks change from call to call and are not seen in a graph; mark tokens inside attached.eager()"
            )
        self._marks.say(priority, load)
        try:
            yield
        finally:
            self._marks.say(None, None)

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Forwards inside have shapes of their own, as without `graph`: for prompts. All ranks do so together."""
        before = [layer.eager for layer in self.layers]
        for layer in self.layers:
            layer.eager = True
        try:
            yield
        finally:
            for layer, was in zip(self.layers, before, strict=True):
                layer.eager = was

    def check(self) -> None:
        """With `graph`: wait for the device, and tell what forwards since the last check did not serve.

        Raises:
            RankError: A layer of this rank was given bad ids, weights or scores, or had no place for rows.
        """
        for layer in self.layers:
            if layer.fixed is not None:
                layer.fixed.check()

    def swap(self, new: Placement, **options: Any) -> Swap:
        """Go to another map, by `Swap`, which has the options; all ranks ask for the same.

        With `graph`, captured graphs serve by the map in force from their next replay on: nothing is captured again.
        """
        return Swap(self, new, **options)

    def interleave(self, *calls: Callable[[], Result]) -> list[Result]:
        """What the calls return, each of which runs the model on a part of the tokens (or `join`): while rows of one
        travel, another computes. All ranks give equally many; each runs in a thread of its own, one at a time.

        Raises:
            OptionError: Rows go by a mover, whose room all calls would write to.
            RankError: A rank fails or does not come in time.
        """
        if any(group.mover is not None for group in (self.mesh.world, self.mesh.across, self.mesh.within)):
            raise OptionError(
                "symmetric memory has one room for rows, and calls in turns would write over those of others; give "
                "attach a mesh of torch.distributed as it is"
            )
        return self._turns.run(calls, self.slots_L[0].device)

    def anyone(self, busy: bool) -> bool:
        """Whether any rank is busy, which all ask before each forward: one that is not joins while others are.

        Raises:
            RankError: A rank fails or does not come in time.
        """
        world = self.mesh.world
        told = world.all_to_all(torch.full((len(world.ranks), 1), int(busy), device=self.slots_L[0].device))
        return any(row[0] for row in world.host(told))

    def join(self) -> None:
        """Take part in one forward of the other ranks without tokens."""
        for layer in self.layers:
            layer.join()

    def detach(self) -> None:
        """The model is as it was before `attach`; it need not be done on all ranks.

        Raises:
            OptionError: The model's own experts were freed.
        """
        for layer in self.layers:
            layer.remove()
        for hook in self._hooks:
            hook.remove()
