"""All ranks in one process, one at a time: the same program as on a cluster, without a network.

Every rank is a thread, but only the rank whose turn it is runs; it hands on the turn when it must wait for others.
So runs are repeatable, the time that a rank takes between two exchanges is its own, and a group in which nobody can
go on is noticed at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from placement.errors import OptionError, RankError
from placement.runtime.transport.base import Mesh, RowMover, mesh_ranks

Result = TypeVar("Result")
READY, WAITING, DONE = "ready", "waiting", "done"


class Lockstep:
    """A group of `num_nodes * gpus_per_node` ranks in this process."""

    def __init__(self, num_nodes: int, gpus_per_node: int) -> None:
        if num_nodes < 1 or gpus_per_node < 1:
            raise OptionError(f"num_nodes={num_nodes} and gpus_per_node={gpus_per_node} must be at least 1")
        self.num_nodes, self.gpus_per_node = num_nodes, gpus_per_node
        self._reset()

    @property
    def num_ranks(self) -> int:
        """Ranks of the group."""
        return self.num_nodes * self.gpus_per_node

    def mesh(self, rank: int) -> Mesh:
        """The groups of a rank; to be used by that rank's program only."""
        across, within = mesh_ranks(rank, self.num_nodes, self.gpus_per_node)
        return Mesh(
            world=LockstepGroup(self, rank, tuple(range(self.num_ranks))),
            across=LockstepGroup(self, rank, tuple(across)),
            within=LockstepGroup(self, rank, tuple(within)),
        )

    def run(self, program: Callable[[Mesh], Result]) -> list[Result]:
        """What `program` returns on every rank. Raises what a rank raised, not what followed from it on others."""
        outcomes = self.try_run(program)
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if errors:
            raise next((error for error in errors if not isinstance(error, RankError)), errors[0])
        return outcomes  # type: ignore[return-value]

    def try_run(self, program: Callable[[Mesh], Result]) -> list[Result | BaseException]:
        """What every rank returns or raises."""
        self._reset()
        outcomes: list[Any] = [None] * self.num_ranks

        def one(rank: int) -> None:
            try:
                self._await_turn(rank)
                outcomes[rank] = program(self.mesh(rank))
            except BaseException as error:
                outcomes[rank] = error
            finally:
                with self._lock:
                    self._state[rank] = DONE
                    self._pass_turn(rank)

        threads = [threading.Thread(target=one, args=(rank,), name=f"rank {rank}") for rank in range(self.num_ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return outcomes

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._called = [threading.Condition(self._lock) for _ in range(self.num_ranks)]  # so that one alone wakes up
        self._state = [READY] * self.num_ranks
        self._turn = 0
        self._fault: RankError | None = None
        self._posted: dict[tuple[tuple[int, ...], int], dict[int, Any]] = {}
        self._number: dict[tuple[tuple[int, ...], int], int] = {}
        self.decided: dict[tuple[tuple[int, ...], int], str] = {}

    def _await_turn(self, rank: int) -> None:
        with self._lock:
            self._called[rank].wait_for(lambda: self._turn == rank)

    def _pass_turn(self, rank: int) -> None:
        """The next rank that can go on gets the turn; if none can, all that wait are told why."""
        order = [(rank + step) % self.num_ranks for step in range(1, self.num_ranks + 1)]
        ready = [one for one in order if self._state[one] == READY]
        waiting = [one for one in order if self._state[one] == WAITING]
        if not ready and waiting:
            if self._fault is None:
                self._fault = self._who_is_missing()
            self._state[waiting[0]] = READY
            ready = waiting[:1]
        if ready:
            self._turn = ready[0]
            self._called[self._turn].notify()

    def _who_is_missing(self) -> RankError:
        missing = sorted({r for (ranks, _), posted in self._posted.items() if posted for r in ranks if r not in posted})
        ended = [rank for rank in missing if self._state[rank] == DONE] or missing
        what = "ended before" if self._state[ended[0]] == DONE else "did not come to"
        return RankError(f"rank {', '.join(map(str, ended))} {what} an exchange that others wait in", tuple(ended))

    def swap(self, ranks: tuple[int, ...], rank: int, posted: Any) -> list[Any]:
        """What every member of `ranks` posted, once all have."""
        with self._lock:
            number = self._number.get((ranks, rank), 0)
            self._number[ranks, rank] = number + 1
            slot = self._posted.setdefault((ranks, number), {})
            slot[rank] = posted
            if len(slot) == len(ranks):
                for member in ranks:
                    self._state[member] = READY
                del self._posted[ranks, number]
            else:
                self._state[rank] = WAITING
            self._pass_turn(rank)
            self._called[rank].wait_for(lambda: self._turn == rank)
            if self._fault is not None and len(slot) < len(ranks):
                raise self._fault
            return [slot[member] for member in ranks]


class LockstepGroup:
    """See `Group`."""

    mover: RowMover | None = None

    def __init__(self, world: Lockstep, rank: int, ranks: tuple[int, ...]) -> None:
        self._world, self._me = world, rank
        self.name = f"lockstep of {', '.join(map(str, ranks))}"
        self.rank, self.ranks = ranks.index(rank), ranks
        self._decisions = 0

    def all_to_all(
        self,
        send: Tensor,
        send_rows: list[int] | None = None,
        recv_rows: list[int] | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        parts = send.chunk(len(self.ranks)) if send_rows is None else send.split(send_rows)
        got = [posted[self.rank] for posted in self._world.swap(self.ranks, self._me, parts)]
        for member, part, rows in zip(self.ranks, got, recv_rows or [len(one) for one in got], strict=True):
            if len(part) != rows:
                raise RankError(f"rank {member} sent {len(part)} rows where {rows} were announced", (member,))
        came = torch.cat(got, out=out)
        self._world.swap(self.ranks, self._me, None)  # all have copied: senders may write to their buffers again
        return came

    def start(
        self, send: Tensor, out: Tensor, send_rows: list[int] | None = None, recv_rows: list[int] | None = None
    ) -> Callable[[], None]:
        self.all_to_all(send, send_rows, recv_rows, out)
        return _nothing

    def host(self, tensor: Tensor) -> list[list[int]]:
        return tensor.tolist()

    def no_graph(self, device: torch.device) -> str | None:
        if device.type == "cuda" and len(self.ranks) > 1:
            return "ranks in lockstep wait for one another on the host"
        return None

    def decide(self, proposal: str) -> str:
        self._decisions += 1
        return self._world.decided.setdefault((self.ranks, self._decisions), proposal)


def _nothing() -> None:
    """There is nothing to wait for."""
