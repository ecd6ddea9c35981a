"""The layer in fixed shapes: nothing waits for the host, so a CUDA graph can capture it.

Every pair of ranks exchanges equally many rows, every slot works on equally many, and what is not needed is blank. What
does not fit is dropped in the order of rows and counted; `check` tells, outside of the graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from placement.cost.choices import REPLICA_CHOICES
from placement.errors import OptionError, RankError
from placement.runtime.dispatcher import Dispatcher
from placement.runtime.experts import GroupedExperts
from placement.runtime.header import Exchange, announce, fault_error
from placement.runtime.reduce import gather_rows, sum_rows
from placement.runtime.wire import Wire


class StaticLayer:
    """`y = layer(x, ids, weights)` for exactly `tokens` rows; fewer tokens are filled up with rows of ids -1.

    Args:
        dispatcher: The map, replica choice and flat exchange are used; every rank must construct the layer together.
        rows_per_rank: Copies that one rank may send to another; `tokens` always suffices.
        rows_per_slot: Rows that a slot works on; `tokens` times the number of ranks always suffices.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        experts: GroupedExperts,
        *,
        tokens: int,
        top_k: int,
        dtype: torch.dtype,
        rows_per_rank: int | None = None,
        rows_per_slot: int | None = None,
    ) -> None:
        layer_map, world, device = dispatcher.layer_map, dispatcher.mesh.world, dispatcher.device
        if device.type == "cuda" and dispatcher.choose.waits_for_host:
            nodes, make = layer_map.num_nodes, REPLICA_CHOICES.make
            others = ", ".join(name for name in REPLICA_CHOICES if make(name).on_device(nodes))
            raise OptionError(
                f"replica choice {dispatcher.choose.choice!r} on {nodes} nodes waits for the host; "
                f"choose one of {others}"
            )
        self._dispatcher, self._experts, self._world = dispatcher, experts, world
        self._size = len(world.ranks)
        self._per_rank = tokens if rows_per_rank is None else rows_per_rank
        self._per_slot = tokens * self._size if rows_per_slot is None else rows_per_slot
        self._wire = Wire(hidden=experts.down.shape[2], dtype=dtype, width=top_k, fp8=dispatcher.fp8)
        self._rows = torch.zeros((tokens + 1, self._wire.row_bytes), dtype=torch.uint8, device=device)
        self._wire.slots(self._rows)[-1] = -1  # the blank row
        slots = range(layer_map.num_slots)
        self._rank_P = torch.tensor([*(p // layer_map.slots_per_gpu for p in slots), self._size], device=device)
        self.lost = torch.zeros(3, dtype=torch.int64, device=device)
        exchange = Exchange(
            version=layer_map.version, layer=layer_map.layer, step=self._per_rank, row_kind=self._wire.kind
        )
        nothing = torch.zeros(self._size, dtype=torch.int64, device=device)
        if fault := announce(world, exchange, nothing, nothing, 0, tokens).fault:
            raise fault_error(fault, exchange, layer_map.num_experts)

    @torch.no_grad()
    def __call__(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Sums of the experts' outputs [T, D]. Bad ids and weights count as none; `check` tells of them."""
        wire, layer_map = self._wire, self._dispatcher.layer_map
        checked, fault = self._dispatcher.checked(ids, weights)
        slots = self._dispatcher.choose(checked)
        tokens = len(self._rows) - 1
        wire.encode(x, slots, weights.nan_to_num(0.0, 0.0, 0.0), self._rows[:tokens])
        hit_GT = torch.zeros((self._size + 1, tokens), dtype=torch.bool, device=x.device)
        hit_GT.scatter_(0, self._rank_P[slots].T, True)
        token_C, lost_rows = _places(hit_GT[: self._size], self._per_rank)
        room = self._rows.new_empty((len(token_C), wire.row_bytes))
        came = self._world.all_to_all(gather_rows(self._rows, token_C, room))
        local = self._dispatcher.local_P[wire.slots(came).long()].reshape(-1)
        own = torch.arange(layer_map.slots_per_gpu, device=x.device)
        entry_C, lost_assignments = _places(local == own[:, None], self._per_slot)
        blank = entry_C == local.numel()
        entry_C = entry_C.clamp(max=local.numel() - 1)
        row_C = entry_C // wire.width
        hidden = wire.hidden_states(came)
        rows = gather_rows(hidden, row_C, hidden.new_empty((len(row_C), wire.hidden)))
        out = self._experts.padded(rows.view(len(own), self._per_slot, wire.hidden)).flatten(0, 1)
        weight_C = wire.weights(came).reshape(-1)[entry_C]
        sums = sum_rows(out, row_C.masked_fill(blank, len(came)), len(came), weight_C)
        self.lost += torch.stack([lost_rows, lost_assignments, (fault != 0).long()])
        return sum_rows(self._world.all_to_all(sums), token_C, tokens)

    def check(self) -> None:
        """Wait for the device, and tell of rows that were lost.

        Raises:
            RankError: Rows were lost on this rank since the last check.
        """
        rows, assignments, bad = self.lost.tolist()
        self.lost.zero_()
        if rows or assignments or bad:
            rank = self._dispatcher.mesh.rank
            raise RankError(
                f"rank {rank}: {rows} copies of tokens beyond rows_per_rank={self._per_rank} and {assignments} "
                f"assignments beyond rows_per_slot={self._per_slot} were dropped; {bad} calls had bad ids or weights",
                (rank,),
            )


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
