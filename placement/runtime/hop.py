"""One hop: every row goes once to each distinct destination among its slots; sums come back the same way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from placement.runtime.header import Announced, Announcing, Exchange, start_announcing
from placement.runtime.kernels import cpu
from placement.runtime.overlap import Meanwhile, exchange_while
from placement.runtime.reduce import sum_rows
from placement.runtime.transport.base import Group, RowMover
from placement.runtime.workspace import Workspace

Write = Callable[[Tensor, Tensor], Tensor]  # (row numbers, buffer of bytes): the rows, written to the buffer


@dataclass(frozen=True, slots=True, kw_only=True)
class HopHandle:
    """How rows went, so that sums find their way back.

    num_rows   rows before the hop
    row_S      which of them each sent row is, int64 [S], by destination
    announced  rows by member
    own        rows that this rank has for itself, where they make no exchange: the last that go, the first that come
    came_X     rows from each member, int64 [X] on the device, where they went by the group's mover
    """

    group: Group
    workspace: Workspace
    name: str
    num_rows: int
    row_S: Tensor
    announced: Announced
    own: int = 0
    came_X: Tensor | None = None

    def room_for_sums(self, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Where sums of the rows that came are best written, [R, columns]: those of own rows then need no copy."""
        came = sum(self.announced.recv_rows)
        if not self.own:
            return self.workspace.empty(f"sums {self.name}", came, columns, dtype, device)
        others = len(self.row_S) - self.own
        return self.workspace.empty(f"back {self.name}", others + came, columns, dtype, device)[others:]

    def back(self, sums: Tensor, out: Tensor | None = None, meanwhile: Meanwhile | None = None) -> Tensor:
        """Partial sums of the rows that came, [R, D], to the sums of those that went, [num_rows, D]."""
        if self.came_X is not None and self.group.mover is not None:
            row_bytes = sums.shape[1] * sums.dtype.itemsize
            self.group.mover.room(len(sums), row_bytes, back=True).copy_(sums.contiguous().view(torch.uint8))
            moved, _ = self.group.mover.move(row_bytes, self.came_X)
            if meanwhile is not None:
                meanwhile()
            return sum_rows(moved[: len(self.row_S)].view(sums.dtype), self.row_S, self.num_rows, out=out)
        others = len(self.row_S) - self.own
        size = others + (len(sums) if self.own else 0)
        room = self.workspace.empty(f"back {self.name}", size, sums.shape[1], sums.dtype, sums.device)
        if self.own and sums.data_ptr() != room[others:].data_ptr():
            room[others : others + self.own] = sums[: self.own]
        recv, send = self.exchanged(self.announced.recv_rows), self.exchanged(self.announced.send_rows)
        exchange_while(self.group, sums[self.own :], room[:others], recv, send, meanwhile=meanwhile)
        return sum_rows(room[: len(self.row_S)], self.row_S, self.num_rows, out=out)

    def exchanged(self, rows: list[int]) -> list[int]:
        """Rows by member, without this rank's own where they make no exchange."""
        return [0 if self.own and member == self.group.rank else number for member, number in enumerate(rows)]


class Hop:
    """A group and the member of it that each slot lies behind.

    member_of_slot_P  [P]; a number that no member has for slots that cannot be reached here
    """

    def __init__(
        self, group: Group, member_of_slot_P: list[int], workspace: Workspace, name: str, device: torch.device
    ) -> None:
        self.group, self._workspace, self._name = group, workspace, name
        size = len(group.ranks)
        inside = [member if 0 <= member < size else size for member in member_of_slot_P]
        self._member_P = torch.tensor([*inside, size], device=device)  # the last entry is for slot -1
        self._member_X = torch.arange(size, device=device)

    def send(
        self,
        write: Write,
        row_bytes: int,
        slot_RK: Tensor,
        exchange: Exchange,
        fault: Tensor | int,
        tokens: int,
        meanwhile: Meanwhile | None = None,
    ) -> tuple[Tensor, HopHandle]:
        """Rows with these slots, -1 for none; returns the rows that came. None move if there is a fault."""
        mover, rank = self.group.mover, self.group.rank
        plan = _plan(slot_RK, self._member_P, self._member_X, rank if mover is None else -1)
        start = partial(start_announcing, self.group, exchange, plan.rows_X, plan.assignments_X, fault, tokens)
        handle = partial(HopHandle, group=self.group, workspace=self._workspace, name=self._name, num_rows=len(slot_RK))
        if mover is not None:
            most = len(slot_RK) * min(slot_RK.shape[1], len(self.group.ranks))
            return self._move(mover, plan, write, row_bytes, most, start, handle, meanwhile)
        if plan.row_S is not None:
            return self._send_from_host(plan.row_S, int(plan.rows_X[rank]), write, row_bytes, start, handle, meanwhile)
        announced = start().read()
        row_S = plan.rows(sum(announced.send_rows))
        room = self._room("came", sum(announced.recv_rows), row_bytes, slot_RK.device)
        if not announced.fault:
            sent = write(row_S, self._room("sent", len(row_S), row_bytes, slot_RK.device))
            exchange_while(self.group, sent, room, announced.send_rows, announced.recv_rows, meanwhile=meanwhile)
        return room, handle(row_S=row_S, announced=announced)

    def _send_from_host(
        self,
        row_S: Tensor,
        own: int,
        write: Write,
        row_bytes: int,
        start: Callable[[], Announcing],
        handle: Callable[..., HopHandle],
        meanwhile: Meanwhile | None,
    ) -> tuple[Tensor, HopHandle]:
        """As `send` where the host knows the rows: others' are packed while headers travel, own ones in their place."""
        others, headers = len(row_S) - own, start()
        sent = write(row_S[:others], self._room("sent", others, row_bytes, row_S.device))
        announced = headers.read()
        room = self._room("came", sum(announced.recv_rows), row_bytes, row_S.device)
        if announced.fault:
            return room, handle(row_S=row_S[:0], announced=announced)
        gone = handle(row_S=row_S, announced=announced, own=own)
        write(row_S[others:], room[:own])
        told = (gone.exchanged(announced.send_rows), gone.exchanged(announced.recv_rows))
        exchange_while(self.group, sent, room[own:], *told, meanwhile=meanwhile)
        return room, gone

    def _move(
        self,
        mover: RowMover,
        plan: _Plan,
        write: Write,
        row_bytes: int,
        most: int,
        start: Callable[[], Announcing],
        handle: Callable[..., HopHandle],
        meanwhile: Meanwhile | None,
    ) -> tuple[Tensor, HopHandle]:
        """As `send` by a mover: rows are under way before the host hears how many they are; if there is a fault, nobody
        looks at them."""
        row_S = plan.rows(most)
        write(row_S, mover.room(len(row_S), row_bytes))
        headers = start()
        came, came_X = mover.move(row_bytes, plan.rows_X)
        if meanwhile is not None:
            meanwhile()
        announced = headers.read()
        gone = handle(row_S=row_S[: sum(announced.send_rows)], announced=announced, came_X=came_X)
        return came[: sum(announced.recv_rows)], gone

    def _room(self, what: str, num_rows: int, row_bytes: int, device: torch.device) -> Tensor:
        return self._workspace.empty(f"{what} {self._name}", num_rows, row_bytes, torch.uint8, device)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """Rows and assignments for each member, int64 [X]; then either which rows, or on a GPU the bits that say so."""

    rows_X: Tensor
    assignments_X: Tensor
    row_S: Tensor | None = None
    hit_RX: Tensor | None = None

    def rows(self, number: int) -> Tensor:
        """Which rows go, by member: the first `number`, and row 0 where there are fewer; on the host they are known."""
        if self.hit_RX is None:
            assert self.row_S is not None
            return self.row_S[:number]
        return torch.nonzero_static(self.hit_RX.T, size=number, fill_value=0)[:, 1].contiguous()


def _plan(slot_RK: Tensor, member_P: Tensor, member_X: Tensor, last: int) -> _Plan:
    """What goes where; on the host the rows of the member `last` come after all others' (-1: none)."""
    if not slot_RK.is_cuda:
        rows_X, assignments, row_S = cpu.distinct_members(slot_RK.numpy(), member_P.numpy(), len(member_X), last)
        return _Plan(
            rows_X=torch.from_numpy(rows_X),
            assignments_X=torch.from_numpy(assignments),
            row_S=torch.from_numpy(row_S),
        )
    there_RKX = member_P[slot_RK][:, :, None] == member_X
    hit_RX = there_RKX.any(dim=1)
    return _Plan(rows_X=hit_RX.sum(dim=0), assignments_X=there_RKX.sum(dim=(0, 1)), hit_RX=hit_RX)
