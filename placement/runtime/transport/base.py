"""What the runtime asks of a transport: groups of ranks that exchange rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from placement.runtime.wire import Wire
from placement.runtime.workspace import Workspace


class RowMover(Protocol):
    """Moves rows whose counts the host need not know. The calls of all members alternate: `room`, then `move`."""

    def room(self, num_rows: int, row_bytes: int, *, back: bool = False) -> Tensor:
        """Where to write the rows that `move` sends, uint8 [num_rows, row_bytes], those for the first member first.

        Args:
            back: They are sums on their way back.

        Raises:
            OptionError: There is no room for so many, or for rows of this size.
        """
        ...

    def move(self, row_bytes: int, counts_X: Tensor) -> tuple[Tensor, Tensor]:
        """Send as many rows of the room to each member as `counts_X` says, int64 [members] on the device.

        Returns:
            Rows that came, in the order of members, with unused room at the end; valid until the next `move`. And how
            many came from each member.
        """
        ...


class Group(Protocol):
    """One rank's membership in a group of ranks.

    Attributes:
        rank: This rank's index in the group.
        ranks: Rank in the whole EP group of each member, in the order of the group.
        name: What the transport calls the group.
        mover: Moves rows by counts on the device; None where the host has to know the counts.
    """

    rank: int
    ranks: tuple[int, ...]
    name: str
    mover: RowMover | None

    def all_to_all(
        self,
        send: Tensor,
        send_rows: list[int] | None = None,
        recv_rows: list[int] | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Rows for each member, in order of members, swapped for the rows that each member has for this rank.

        Without counts every member gets an equal part. `out` is where the rows that come go, if given.

        Raises:
            RankError: A member fails or does not come in time.
        """
        ...

    def start(
        self, send: Tensor, out: Tensor, send_rows: list[int] | None = None, recv_rows: list[int] | None = None
    ) -> Callable[[], None]:
        """`all_to_all` into `out` while this rank does other things; the answer waits for its end.

        Raises:
            RankError: A member fails or does not come in time.
        """
        ...

    def host(self, tensor: Tensor) -> list[list[int]]:
        """A small matrix of whole numbers on the host: the one wait of a hop.

        Raises:
            RankError: A member fails or does not come in time.
        """
        ...

    def no_graph(self, device: torch.device) -> str | None:
        """Why a CUDA graph cannot capture exchanges of equal parts on the device, as a clause; None: it can."""
        ...

    def decide(self, proposal: str) -> str:
        """What the first member proposed that asked: the same answer on all, those that failed an exchange before too.

        Members ask equally often.

        Raises:
            RankError: Nobody can be asked.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """The groups of one rank of a `(node, local)` mesh.

    Attributes:
        world: All ranks, node by node.
        across: The ranks of the same position on every node, in the order of nodes.
        within: The ranks of this rank's node.
        workspace: Buffers that all layers of this rank share.
    """

    world: Group
    across: Group
    within: Group
    workspace: Workspace = field(default_factory=Workspace)

    @property
    def rank(self) -> int:
        """This rank's number in the EP group."""
        return self.world.rank

    @property
    def num_nodes(self) -> int:
        """Nodes of the mesh."""
        return len(self.across.ranks)

    @property
    def gpus_per_node(self) -> int:
        """Ranks of each node."""
        return len(self.within.ranks)


class RowTransport(Protocol):
    """A way of rows between processes: what `TRANSPORTS` names."""

    def refusal(self, mesh: Mesh, device: torch.device) -> str:
        """Why rows cannot go this way here, and what would mend it; empty if they can."""
        ...

    def mesh(self, mesh: Mesh, wire: Wire, max_tokens: int, device: torch.device) -> Mesh:
        """The groups of a mesh of torch.distributed whose rows go this way; see `with_transport`."""
        ...


def mesh_ranks(rank: int, num_nodes: int, gpus_per_node: int) -> tuple[range, range]:
    """Ranks of the groups `across` and `within` of a rank."""
    node, local = divmod(rank, gpus_per_node)
    return (
        range(local, num_nodes * gpus_per_node, gpus_per_node),
        range(node * gpus_per_node, (node + 1) * gpus_per_node),
    )
