"""One expert module of a model whose forward goes through the runtime."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from placement.core.huggingface import argument_names, read_experts_call
from placement.core.placement import Placement
from placement.errors import OptionError
from placement.runtime.forward_marks import NOTHING, ForwardMarks
from placement.runtime.layer import MoELayer, StepStats
from placement.runtime.module_experts import ModuleExperts, hidden_size
from placement.runtime.overlap import Meanwhile
from placement.runtime.shared_expert import SharedExpert
from placement.runtime.slot_weights import SlotWeights
from placement.runtime.static import StaticLayer
from placement.runtime.turns import Turns

MakeLayers = Callable[[Placement, ModuleExperts, StaticLayer | None], tuple[MoELayer, StaticLayer | None]]


class AttachedLayer:
    """Takes the place of `module.forward` and of the module's weights from `take_over` until `remove`.

    make    this rank's `MoELayer` for a map; with it, for graphs, the layer in fixed shapes, from the one before
    scores  gives the gate scores of all experts [T, E] of the forward that runs; None where the policy needs none
    marks   says what the tokens of the forward that runs are; None where there is no policy
    shared  the shared expert to compute while tokens travel; None: in its own time
    turns   of forwards that run beside one another
    """

    def __init__(
        self,
        module: Any,
        slots: SlotWeights,
        make: MakeLayers,
        *,
        top_k: int,
        scores: Callable[[], Tensor] | None,
        marks: ForwardMarks | None,
        shared: SharedExpert | None,
        turns: Turns,
        keep_weights: bool,
    ) -> None:
        self.slots, self.stats = slots, None
        self._module, self._make, self._top_k = module, make, top_k
        self._scores, self._marks, self._shared, self._turns = scores, marks, shared, turns
        self._hidden = hidden_size(module)
        self._dtype, self._keep = module.down_proj.dtype, keep_weights
        self._kept: dict[str, Any] | None = None
        self.fixed: StaticLayer | None = None
        self.eager = False
        self._forward_before: Any = None
        self._own_forward, self._names = module.forward, argument_names(module.forward)

    stats: StepStats | None

    def take_over(self) -> None:
        """From now on the module's forward is that of all ranks. `use` comes first."""
        parameters = self._module._parameters
        weights = {name: value for name, value in parameters.items() if value is not None}
        self._kept = weights if self._keep else None
        parameters.update(dict.fromkeys(weights))
        self._forward_before = self._module.__dict__.get("forward")

        @functools.wraps(self._own_forward)  # under its name and with its arguments, which hooks look at
        def forward(*args: Any, **kwargs: Any) -> Tensor:
            return self.forward(*args, **kwargs)

        forward.attached = self  # type: ignore[attr-defined]
        self._module.forward = forward

    def use(self, placement: Placement) -> None:
        """Serve by this map, of which the slots have the weights."""
        self.layer, self.fixed = self._make(placement, ModuleExperts(self._module, self.slots), self.fixed)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the module's own, on all ranks at once. Raises InputError for a call that is not understood."""
        call = read_experts_call(self._names, args, kwargs)
        hidden_states = call.hidden
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        scores = None if self._scores is None else self._scores()
        ids, told = call.ids_TK, NOTHING if self._marks is None else self._marks.of(len(x), x.device)
        if told.padding is not None:
            ids = ids.masked_fill(told.padding[:, None], -1)
        spared = told.decode and self.layer.capacity.policy.spare_decode
        given, meanwhile = (x, ids, call.weights_TK, scores), self._meanwhile()
        if self.fixed is not None and not self.eager:
            y, self.stats = self.fixed(*given, spared=spared, meanwhile=meanwhile)
        else:
            y, self.stats = self.layer(
                *given, priority=told.priority, load=told.load, spared=spared, meanwhile=meanwhile
            )
        return y.reshape(hidden_states.shape).to(hidden_states.dtype)

    def join(self) -> None:
        """Take part without tokens."""
        device, layer_map = self.slots.device, self.layer.dispatcher.layer_map
        nothing = torch.empty((0, self._top_k), device=device)
        x = torch.empty((0, self._hidden), dtype=self._dtype, device=device)
        scores = None if self._scores is None else torch.empty((0, layer_map.num_experts), device=device)
        layer = self.layer if self.fixed is None or self.eager else self.fixed
        _, self.stats = layer(x, nothing.long(), nothing, scores, meanwhile=self._meanwhile())

    def _meanwhile(self) -> Meanwhile | None:
        """What to do while rows travel; None: wait."""
        if not self._turns.taken:
            return None if self._shared is None else self._shared.run
        return self._others_go_on

    def _others_go_on(self) -> None:
        if self._shared is not None:
            self._shared.run()
        self._turns.pass_on()

    def remove(self) -> None:
        """The module is as it was. Raises OptionError if its weights were not kept."""
        if self._kept is None:
            raise OptionError("the model's experts were not kept (keep_weights=False); load the model again")
        self._module._parameters.update(self._kept)
        if self._forward_before is None:
            del self._module.forward
        else:
            self._module.forward = self._forward_before
