"""One MoE layer on one rank: choose slots, keep to capacity, dispatch, run the experts, combine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from placement.runtime.capacity import CapacityPolicy
from placement.runtime.decision import RankCapacity
from placement.runtime.dispatcher import Dispatcher
from placement.runtime.overlap import Meanwhile

Experts = Callable[[Tensor, Tensor], Tensor]
UNLIMITED = CapacityPolicy()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStats:
    """What one call did on this rank; tensors stay on the device until they are read.

    Attributes:
        load_P: Assignments that each of this rank's slots served, int64 [slots_per_gpu].
        dropped: Assignments of this rank's tokens that were dropped for capacity, scalar.
        extra: Experts of this rank that served tokens beyond their top-k sets, scalar.
        copies: Copies of tokens that came to this rank.
        across_bytes: Bytes that this rank sent to other nodes, there and back.
        within_bytes: Bytes that this rank sent to other ranks of its node, there and back.
    """

    load_P: Tensor
    dropped: Tensor
    extra: Tensor
    copies: int
    across_bytes: int
    within_bytes: int


class MoELayer:
    """`y, stats = layer(x, ids, weights)`; every rank calls it for every layer and step, without tokens too.

    Args:
        dispatcher: The dispatcher of this rank and layer.
        experts: Outputs of rows [A, D] in slot order, given counts [slots_per_gpu] (`GroupedExperts`).
        capacity: See `CapacityPolicy`.
    """

    def __init__(self, dispatcher: Dispatcher, experts: Experts, capacity: CapacityPolicy = UNLIMITED) -> None:
        self.dispatcher, self.experts = dispatcher, experts
        self.capacity = RankCapacity(capacity, dispatcher.layer_map, dispatcher.mesh.world)

    @torch.no_grad()
    def __call__(
        self,
        x: Tensor,
        ids: Tensor,
        weights: Tensor,
        scores: Tensor | None = None,
        *,
        priority: Tensor | None = None,
        load: Tensor | None = None,
        spared: bool = False,
        meanwhile: Meanwhile | None = None,
    ) -> tuple[Tensor, StepStats]:
        """Sums of the experts' outputs [T, D] for hidden states [T, D]; the rest is as in `RankCapacity.decide`.

        `meanwhile` is called whenever rows travel: on each hop once as tokens go and once as sums come back.

        Raises:
            RankError: On every rank, if a rank gave bad ids or weights, has another map or is at another layer.
        """
        dispatcher = self.dispatcher
        checked, fault = dispatcher.checked(ids, weights)
        slots = dispatcher.choose(checked)
        decision = self.capacity.decide(
            checked, slots, weights, scores, priority=priority, load=load, spared=spared, fault=fault
        )
        rows, counts, handle = dispatcher.dispatch_slots(
            x, decision.slots, decision.weights, decision.fault, reuse=True, meanwhile=meanwhile
        )
        y = dispatcher.combine(self.experts(rows, counts), handle, meanwhile)
        across, within = handle.sent_bytes(dispatcher.mesh.gpus_per_node, dispatcher.mesh.rank)
        stats = StepStats(
            load_P=counts,
            dropped=decision.dropped,
            extra=decision.extra,
            copies=handle.num_rows,
            across_bytes=across,
            within_bytes=within,
        )
        return y, stats
