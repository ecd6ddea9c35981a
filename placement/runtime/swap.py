"""Weights move to another map while the old one serves; all ranks change over at the same step, or none does."""

from __future__ import annotations

import hashlib
from typing import Protocol

import torch
from torch import Tensor

from placement.core.cluster import Cluster
from placement.core.migration import MigrationPlan
from placement.core.placement import Placement
from placement.errors import OptionError, RankError
from placement.runtime.header import (
    KIND_SHIFT,
    MEMORY,
    ROWS,
    SWAP,
    SWAP_LAYER,
    WEIGHTS,
    Announced,
    Exchange,
    announce,
    fault_error,
    fault_of,
)
from placement.runtime.layer_map import map_version
from placement.runtime.slot_weights import SlotWeights, row_digest
from placement.runtime.swap_plan import Copy, swap_plan
from placement.runtime.transport.base import Mesh

DIGEST_BYTES = 32
COMMIT, ABORT = "commit", "abort"


class Served(Protocol):
    """What is swapped: `Attached`, or anything that computes with `slots_L` by the map `placement`."""

    placement: Placement
    mesh: Mesh

    @property
    def slots_L(self) -> list[SlotWeights]: ...

    def use(self, placement: Placement) -> None: ...


class Swap:
    """`while not swap.advance(): serve()`, on every rank in the same order.

    Until a stage is complete its weights lie beside the slots, and the map before serves. Then every rank tells all
    others whether what came has the hash of what was sent; if all have heard that all do, they write to their slots and
    use the new map. A rank that is lost before leaves the old map in force on all others, which raise RankError.

    Args:
        new: The map to go to.
        staging_bytes: Most memory that this swap takes on a rank. Where the whole change does not fit, it goes in
            stages, through maps of which the first layers are new, each of them agreed on by all. None: all at once.
        cluster: How far ranks are from one another; by default all nodes are alike.
        relabel_ranks: Nodes and GPUs that are alike may trade places, which moves less; False where requests have homes
            that `new` was made for.
    """

    def __init__(
        self,
        served: Served,
        new: Placement,
        *,
        staging_bytes: int | None = None,
        cluster: Cluster | None = None,
        relabel_ranks: bool = True,
    ) -> None:
        self._served, self._mesh = served, served.mesh
        expert_bytes = max(slots.slot_bytes for slots in served.slots_L)
        self._row_bytes = expert_bytes + DIGEST_BYTES
        self._plan = swap_plan(
            served.placement,
            new,
            row_bytes=self._row_bytes,
            expert_bytes=expert_bytes,
            staging_bytes=staging_bytes,
            cluster=cluster,
            relabel_ranks=relabel_ranks,
        )
        asked = repr((map_version(new), staging_bytes, relabel_ranks, self._row_bytes))
        self._kind = int.from_bytes(hashlib.sha256(asked.encode()).digest()[:7], "little")
        self._stage = self._step = self._calls = self._arrived = 0
        self._room: Tensor | None = None
        self._over = False

    @property
    def migration(self) -> MigrationPlan:
        """The copies of the whole swap, with its bytes by link."""
        return self._plan.migration

    @property
    def target(self) -> Placement:
        """The map at the end: `new`, nodes, GPUs and slots in the order that moves least."""
        return self._plan.stages[-1].placement

    @property
    def num_steps(self) -> int:
        """Calls of `advance` that it takes."""
        return sum(len(stage.steps) + 1 for stage in self._plan.stages)

    def run(self) -> None:
        """All steps, one after another."""
        while not self.advance():
            pass

    @torch.no_grad()
    def advance(self) -> bool:
        """One step: a rank sends one expert at most, or a stage is completed. True once the new map is in force.

        Raises:
            RankError: On every rank, if one fails, gets damaged weights or was asked for something else. The map that
                is in force (`placement`) is the same on all ranks, and serves on unless the group is lost.
        """
        if self._over:
            raise OptionError("this swap is over; make another one")
        stage = self._plan.stages[self._stage]
        fault = self._make_room() if self._room is None else 0
        try:
            if self._step < len(stage.steps):
                self._send(stage.steps[self._step], fault)
                self._step += 1
            else:
                self._complete(fault)
                self._room, self._arrived, self._step, self._stage = None, 0, 0, self._stage + 1
        except BaseException:
            self._room, self._over = None, True
            raise
        self._over = self._stage == len(self._plan.stages)
        return self._over

    def _make_room(self) -> int:
        """Memory for a stage: a row for each slot that comes, and one to send. The fault if there is none."""
        rows = len(self._plan.stages[self._stage].rows_of(self._mesh.rank)) + 1
        try:
            device = self._served.slots_L[0].device
            self._room = torch.empty((rows, self._row_bytes), dtype=torch.uint8, device=device)
        except (RuntimeError, MemoryError):
            return fault_of(MEMORY, self._mesh.rank)
        return 0

    def _send(self, copies: tuple[Copy, ...], fault: int) -> None:
        ranks = self._mesh.world.ranks
        mine = [copy for copy in copies if copy.source == self._mesh.rank]
        sent_G = torch.tensor([sum(copy.target == rank for copy in mine) for rank in ranks])
        counts, exchange = self._announce(fault, sent_G)
        self._raise_fault(counts, exchange)
        assert self._room is not None  # or there were a fault
        out = self._room[-1:] if mine else self._room[:0]
        for copy in mine:
            self._read(copy, out[0])
        into = self._room[self._arrived : self._arrived + sum(counts.recv_rows)]
        self._mesh.world.all_to_all(out, counts.send_rows, counts.recv_rows, out=into)
        self._arrived += len(into)

    def _complete(self, fault: int) -> None:
        """Local copies, the vote, and what follows from it."""
        stage, world = self._plan.stages[self._stage], self._mesh.world
        if not fault:
            fault = self._fault_of_rows(stage.local)
        try:
            votes, exchange = self._announce(fault, torch.zeros(len(world.ranks), dtype=torch.int64))
        except RankError:
            # others may have heard all votes: whoever is first decides for all
            if not fault and world.decide(ABORT) == COMMIT:
                self._flip()
            raise
        self._raise_fault(votes, exchange)
        if world.decide(COMMIT) == ABORT:
            raise RankError("another rank did not hear that all are ready, so the old map stays in force", world.ranks)
        self._flip()

    def _fault_of_rows(self, local: tuple[Copy, ...]) -> int:
        assert self._room is not None
        for row in self._room[: self._arrived]:
            if row_digest(row[:-DIGEST_BYTES]) != row[-DIGEST_BYTES:].cpu().numpy().tobytes():
                return fault_of(WEIGHTS, self._mesh.rank)
        for copy in local:
            if copy.target == self._mesh.rank:
                self._read(copy, self._room[self._arrived])
                self._arrived += 1
        return 0

    def _flip(self) -> None:
        stage, per_rank = self._plan.stages[self._stage], self._served.placement.slots_per_gpu
        assert self._room is not None
        for copy, row in zip(stage.rows_of(self._mesh.rank), self._room, strict=False):
            slots = self._served.slots_L[copy.layer]
            slots.write(copy.slot % per_rank, row[: slots.slot_bytes])
        self._served.use(stage.placement)

    def _read(self, copy: Copy, row: Tensor) -> None:
        """A slot of this rank and its hash."""
        slots = self._served.slots_L[copy.layer]
        row[slots.slot_bytes : -DIGEST_BYTES] = 0
        slots.read(copy.from_slot % self._served.placement.slots_per_gpu, row[: slots.slot_bytes])
        digest = torch.frombuffer(bytearray(row_digest(row[:-DIGEST_BYTES])), dtype=torch.uint8)
        row[-DIGEST_BYTES:] = digest.to(row.device)

    def _announce(self, fault: int, sent_G: Tensor) -> tuple[Announced, Exchange]:
        """Ranks tell what they send, and that they mean the same step of the same swap."""
        exchange = Exchange(
            version=map_version(self._served.placement), layer=SWAP_LAYER, step=self._calls, row_kind=self._kind
        )
        self._calls += 1
        rows = sent_G.to(self._served.slots_L[0].device)
        return announce(self._mesh.world, exchange, rows, rows, fault, 0), exchange

    def _raise_fault(self, announced: Announced, exchange: Exchange) -> None:
        fault = announced.fault
        if fault:
            if fault >> KIND_SHIFT == ROWS:
                fault += fault_of(SWAP - ROWS, 0)
            raise fault_error(fault, exchange, self._served.placement.model.num_experts)
