"""One hop: every row goes once to each distinct destination among its slots; sums come back the same way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from placement.runtime.header import Announced, Exchange, start_announcing
from placement.runtime.kernels import cpu
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
    came_X     rows from each member, int64 [X] on the device, where they went by the group's mover
    """

    group: Group
    workspace: Workspace
    num_rows: int
    row_S: Tensor
    announced: Announced
    came_X: Tensor | None = None

    def back(self, sums: Tensor) -> Tensor:
        """Partial sums of the rows that came, [R, D], to the sums of those that went, [num_rows, D]."""
        if self.came_X is not None and self.group.mover is not None:
            row_bytes = sums.shape[1] * sums.dtype.itemsize
            self.group.mover.room(len(sums), row_bytes, back=True).copy_(sums.contiguous().view(torch.uint8))
            moved, _ = self.group.mover.move(row_bytes, self.came_X)
            return sum_rows(moved[: len(self.row_S)].view(sums.dtype), self.row_S, self.num_rows)
        room = self.workspace.empty("back", len(self.row_S), sums.shape[1], sums.dtype, sums.device)
        back = self.group.all_to_all(sums, self.announced.recv_rows, self.announced.send_rows, room)
        return sum_rows(back, self.row_S, self.num_rows)


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
        self, write: Write, row_bytes: int, slot_RK: Tensor, exchange: Exchange, fault: Tensor | int, tokens: int
    ) -> tuple[Tensor, HopHandle]:
        """Rows with these slots, -1 for none; returns the rows that came. None move if there is a fault."""
        plan = _plan(slot_RK, self._member_P, self._member_X)
        if self.group.mover is not None:
            return self._move(self.group.mover, plan, write, row_bytes, slot_RK, exchange, fault, tokens)
        telling = start_announcing(self.group, exchange, plan.rows_X, plan.assignments_X, fault, tokens)
        packed = None
        if plan.row_S is not None:  # on the host rows are packed while headers travel
            packed = write(plan.row_S, self._room("sent", len(plan.row_S), row_bytes, slot_RK.device))
        announced = telling.read()
        row_S = plan.rows(sum(announced.send_rows))
        handle = HopHandle(
            group=self.group, workspace=self._workspace, num_rows=len(slot_RK), row_S=row_S, announced=announced
        )
        room = self._room("came", sum(announced.recv_rows), row_bytes, slot_RK.device)
        if announced.fault:
            return room, handle
        if packed is None:
            packed = write(row_S, self._room("sent", len(row_S), row_bytes, slot_RK.device))
        return self.group.all_to_all(packed, announced.send_rows, announced.recv_rows, room), handle

    def _move(
        self,
        mover: RowMover,
        plan: _Plan,
        write: Write,
        row_bytes: int,
        slot_RK: Tensor,
        exchange: Exchange,
        fault: Tensor | int,
        tokens: int,
    ) -> tuple[Tensor, HopHandle]:
        """As `send`; rows are under way before the host hears how many they are, and are not looked at if there is a
        fault."""
        row_S = plan.rows(len(slot_RK) * min(slot_RK.shape[1], len(self.group.ranks)))
        write(row_S, mover.room(len(row_S), row_bytes))
        telling = start_announcing(self.group, exchange, plan.rows_X, plan.assignments_X, fault, tokens)
        moved, came_X = mover.move(row_bytes, plan.rows_X)
        announced = telling.read()
        handle = HopHandle(
            group=self.group,
            workspace=self._workspace,
            num_rows=len(slot_RK),
            row_S=row_S[: sum(announced.send_rows)],
            announced=announced,
            came_X=came_X,
        )
        return moved[: sum(announced.recv_rows)], handle

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


def _plan(slot_RK: Tensor, member_P: Tensor, member_X: Tensor) -> _Plan:
    if not slot_RK.is_cuda:
        rows_X, assignments, row_S = cpu.distinct_members(slot_RK.numpy(), member_P.numpy(), len(member_X))
        return _Plan(
            rows_X=torch.from_numpy(rows_X),
            assignments_X=torch.from_numpy(assignments),
            row_S=torch.from_numpy(row_S),
        )
    there_RKX = member_P[slot_RK][:, :, None] == member_X
    hit_RX = there_RKX.any(dim=1)
    return _Plan(rows_X=hit_RX.sum(dim=0), assignments_X=there_RKX.sum(dim=(0, 1)), hit_RX=hit_RX)
