"""One hop: every row goes once to each distinct destination among its slots; sums come back the same way."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from placement.runtime.header import Announced, Exchange, announce
from placement.runtime.reduce import gather_rows, sum_rows
from placement.runtime.transport.base import Group
from placement.runtime.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class HopHandle:
    """How rows went, so that sums find their way back.

    num_rows   rows before the hop
    row_S      which of them each sent row is, int64 [S], by destination
    announced  rows by member
    """

    group: Group
    workspace: Workspace
    num_rows: int
    row_S: Tensor
    announced: Announced

    def back(self, sums: Tensor) -> Tensor:
        """Partial sums of the rows that came, [R, D], to the sums of those that went, [num_rows, D]."""
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

    def send(
        self, rows: Tensor, slot_RK: Tensor, exchange: Exchange, fault: Tensor | int, tokens: int
    ) -> tuple[Tensor, HopHandle]:
        """Rows [R, bytes] with their slots, -1 for none; returns the rows that came. None move if there is a fault."""
        size = len(self.group.ranks)
        member_RK = self._member_P[slot_RK]
        hit_XR = torch.zeros((size + 1, len(rows)), dtype=torch.bool, device=rows.device)
        hit_XR.scatter_(0, member_RK.T, True)
        hit_XR = hit_XR[:size]
        assignments_X = torch.zeros(size + 1, dtype=torch.int64, device=rows.device)
        assignments_X.scatter_add_(0, member_RK.reshape(-1), torch.ones_like(member_RK).reshape(-1))
        announced = announce(self.group, exchange, hit_XR.sum(dim=1), assignments_X[:size], fault, tokens)
        row_S = torch.nonzero_static(hit_XR, size=sum(announced.send_rows))[:, 1]
        handle = HopHandle(
            group=self.group, workspace=self._workspace, num_rows=len(rows), row_S=row_S, announced=announced
        )
        if announced.fault:
            return rows[:0], handle
        sent = self._room("sent", len(row_S), rows)
        gather_rows(rows, row_S, sent)
        room = self._room("came", sum(announced.recv_rows), rows)
        return self.group.all_to_all(sent, announced.send_rows, announced.recv_rows, room), handle

    def _room(self, what: str, num_rows: int, like: Tensor) -> Tensor:
        return self._workspace.empty(f"{what} {self._name}", num_rows, like.shape[1], like.dtype, like.device)
