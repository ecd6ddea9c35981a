"""The layer in fixed shapes: nothing waits for the host, so a CUDA graph can capture it.

Every pair of ranks exchanges equally many rows, every slot works on equally many, and what is not needed is blank. What
does not fit is dropped in the order of rows and counted; `check` tells, outside of the graph.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import torch
from torch import Tensor

from placement.cost.choices import REPLICA_CHOICES
from placement.errors import OptionError, RankError
from placement.runtime.capacity import CapacityPolicy
from placement.runtime.dispatcher import FLAT, Dispatcher
from placement.runtime.header import Exchange, announce, fault_error
from placement.runtime.layer import UNLIMITED, StepStats
from placement.runtime.overlap import Meanwhile, exchange_while
from placement.runtime.reduce import gather_rows, sum_rows
from placement.runtime.static_capacity import StaticCapacity
from placement.runtime.wire import Wire


class PaddedExperts(Protocol):
    """Experts that take equally many rows a slot: `GroupedExperts`, `ModuleExperts`."""

    @property
    def hidden(self) -> int: ...

    def padded(self, rows_SCD: Tensor) -> Tensor: ...


class StaticLayer:
    """`y, stats = layer(x, ids, weights)` for at most `tokens` rows; every rank constructs and calls it together.

    The map, the replica choice and the mesh are the dispatcher's. Its hops are not: rows go to their ranks in one.

    Args:
        tokens: Most tokens of a rank in a call; every rank gives the same.
        capacity: See `CapacityPolicy`; without classes.
        rows_per_rank: Copies that one rank may send to another; `tokens` always suffices.
        rows_per_slot: Rows that a slot works on; by default as many as the policy lets a slot serve, or `tokens` times
            the number of ranks where it limits nothing.

    Raises:
        OptionError: Something waits for the host, on any device: two hops, replicas chosen there, the transport.
        RankError: Ranks gave different shapes, policies or maps.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        experts: PaddedExperts,
        *,
        tokens: int,
        top_k: int,
        dtype: torch.dtype,
        capacity: CapacityPolicy = UNLIMITED,
        rows_per_rank: int | None = None,
        rows_per_slot: int | None = None,
    ) -> None:
        _refuse(dispatcher, tokens)
        layer_map, world, device = dispatcher.layer_map, dispatcher.mesh.world, dispatcher.device
        self.dispatcher, self._experts, self._world = dispatcher, experts, world
        self.capacity = StaticCapacity(capacity, layer_map, world, device, tokens=tokens, top_k=top_k)
        self._size, self._tokens = len(world.ranks), tokens
        self._per_rank = tokens if rows_per_rank is None else rows_per_rank
        self._per_slot = self.capacity.rows_per_slot() if rows_per_slot is None else rows_per_slot
        self._wire = Wire(hidden=experts.hidden, dtype=dtype, width=self.capacity.width, fp8=dispatcher.fp8)
        self._local_P = dispatcher.local_P  # the same under every map
        self._rows = torch.zeros((tokens + 1, self._wire.row_bytes), dtype=torch.uint8, device=device)
        slots = range(layer_map.num_slots)
        self._rank_P = torch.tensor([*(p // layer_map.slots_per_gpu for p in slots), self._size], device=device)
        self.lost = torch.zeros(3, dtype=torch.int64, device=device)
        self._agree()

    @torch.no_grad()
    def __call__(
        self,
        x: Tensor,
        ids: Tensor,
        weights: Tensor,
        scores: Tensor | None = None,
        *,
        spared: bool = False,
        meanwhile: Meanwhile | None = None,
    ) -> tuple[Tensor, StepStats]:
        """Sums of the experts' outputs [T, D], as `MoELayer`; `check` tells of bad ids and weights, which are left out.

        In the stats copies and bytes are those of the exchange, blank rows included.

        Raises:
            OptionError: There are more than `tokens` rows.
        """
        wire, tokens, size = self._wire, len(x), self._size
        if tokens > self._tokens:
            raise OptionError(
                f"the call has {tokens} tokens and the layer is made for tokens={self._tokens}; give more there, or "
                "call it with fewer (a model: inside attached.eager())"
            )
        checked, fault = self.dispatcher.checked(ids, weights)
        slots = self.dispatcher.choose(checked)
        decision = self.capacity.decide(checked, slots, weights, scores, spared=spared, fault=fault)
        rows = self._rows[: tokens + 1]
        wire.slots(rows)[-1] = -1  # the blank row
        wire.encode(x, decision.slots, decision.weights.nan_to_num(0.0, 0.0, 0.0), rows[:-1])
        hit_GT = torch.zeros((size + 1, tokens), dtype=torch.bool, device=x.device)
        hit_GT.scatter_(0, self._rank_P[decision.slots].T, True)
        token_C, lost_rows = _places(hit_GT[:size], self._per_rank)
        sent, came = rows.new_empty((2, len(token_C), wire.row_bytes)).unbind()
        exchange_while(self._world, gather_rows(rows, token_C, sent), came, meanwhile=meanwhile)
        sums, load_P, lost_assignments = self._served(came)
        self.lost[:2] += torch.stack([lost_rows, lost_assignments])
        self.lost[2] += decision.fault != 0
        back = exchange_while(self._world, sums, torch.empty_like(sums), meanwhile=meanwhile)
        return sum_rows(back, token_C, tokens), self._stats(load_P, decision.dropped, decision.extra)

    def use(self, dispatcher: Dispatcher) -> None:
        """Serve by the map of another dispatcher; both were made with `any_map`. A captured graph does so from its next
        replay on, since tables are written where it reads them. Choices and decisions begin anew."""
        dispatcher.choose.take_over(self.dispatcher.choose)
        self.capacity.use(dispatcher.layer_map)
        self.dispatcher = dispatcher

    def check(self) -> None:
        """Wait for the device, and tell of rows that were lost.

        Raises:
            RankError: Rows were lost on this rank since the last check.
        """
        rows, assignments, bad = self.lost.tolist()
        self.lost.zero_()
        if rows or assignments or bad:
            rank = self.dispatcher.mesh.rank
            raise RankError(
                f"layer {self.dispatcher.layer_map.layer}: rank {rank}: {rows} copies of tokens beyond rows_per_rank="
                f"{self._per_rank} and {assignments} assignments beyond rows_per_slot={self._per_slot} were dropped; "
                f"{bad} calls had bad ids, weights or scores",
                (rank,),
            )

    def _served(self, came: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of rows that came: sums of the experts' outputs, assignments of each slot, and how many had no place."""
        wire, slots = self._wire, self.dispatcher.layer_map.slots_per_gpu
        local = self._local_P[wire.slots(came).long()].reshape(-1)
        hit_SA = local == torch.arange(slots, device=came.device)[:, None]
        entry_C, lost = _places(hit_SA, self._per_slot)
        blank = entry_C == local.numel()
        entry_C = entry_C.clamp(max=local.numel() - 1)
        row_C = entry_C // wire.width
        hidden = wire.hidden_states(came)
        rows = gather_rows(hidden, row_C, hidden.new_empty((len(row_C), wire.hidden)))
        out = self._experts.padded(rows.view(slots, self._per_slot, wire.hidden)).flatten(0, 1)
        weight_C = wire.weights(came).reshape(-1)[entry_C]
        sums = sum_rows(out, row_C.masked_fill(blank, len(came)), len(came), weight_C)
        return sums, (~blank).view(slots, -1).sum(dim=1), lost

    def _stats(self, load_P: Tensor, dropped: Tensor, extra: Tensor) -> StepStats:
        mesh, copy_bytes = self.dispatcher.mesh, self._wire.row_bytes + self._wire.return_bytes
        return StepStats(
            load_P=load_P,
            dropped=dropped,
            extra=extra,
            copies=self._size * self._per_rank,
            across_bytes=(self._size - mesh.gpus_per_node) * self._per_rank * copy_bytes,
            within_bytes=(mesh.gpus_per_node - 1) * self._per_rank * copy_bytes,
        )

    def _agree(self) -> None:
        """Ranks compare their shapes once: no header travels with the rows."""
        layer_map, device = self.dispatcher.layer_map, self.dispatcher.device
        shape = (self._wire.kind, self._tokens, self._per_rank, self.capacity.policy.number())
        kind = int.from_bytes(hashlib.sha256(repr(shape).encode()).digest()[:7], "little")
        exchange = Exchange(version=layer_map.version, layer=layer_map.layer, step=0, row_kind=kind)
        nothing = torch.zeros(self._size, dtype=torch.int64, device=device)
        if fault := announce(self._world, exchange, nothing, nothing, 0, self._tokens).fault:
            raise fault_error(fault, exchange, layer_map.num_experts)


def _refuse(dispatcher: Dispatcher, tokens: int) -> None:
    """Raise OptionError for what cannot run in fixed shapes; on every device, so that a rehearsal on CPUs tells it."""
    if tokens < 1:
        raise OptionError(f"tokens={tokens} must be at least 1: the most tokens of a rank in a call")
    if dispatcher.hops != FLAT:
        raise OptionError(f"hops={dispatcher.hops!r} needs counts on the host after the first hop; give hops={FLAT!r}")
    if dispatcher.choose.waits_for_host:
        nodes, make = dispatcher.layer_map.num_nodes, REPLICA_CHOICES.make
        others = ", ".join(name for name in REPLICA_CHOICES if make(name).on_device(nodes))
        raise OptionError(
            f"replica choice {dispatcher.choose.choice!r} on {nodes} nodes waits for the host; choose one of {others}"
        )
    if reason := dispatcher.mesh.world.no_graph(dispatcher.device):
        raise OptionError(f"the transport cannot be captured: {reason}; use NCCL without check=True")


def _places(hit_XY: Tensor, room: int) -> tuple[Tensor, Tensor]:
    """For each x the first `room` ys that it hits, [X * room], filled up with Y; how many are left out."""
    size, number = hit_XY.shape
    position = hit_XY.cumsum(dim=1) - 1
    fits = hit_XY & (position < room)
    first = torch.arange(size, device=hit_XY.device)[:, None] * room
    place = torch.where(fits, first + position, size * room).reshape(-1)
    source = torch.arange(number, device=hit_XY.device).expand(size, number).reshape(-1)
    taken = torch.full((size * room + 1,), number, dtype=torch.int64, device=hit_XY.device)
    return taken.scatter_(0, place, source)[:-1], (hit_XY & ~fits).sum()
