"""What ranks tell one another before rows move: how many come, and that all mean the same exchange.

A fault that one rank finds (its own bad input, or another rank's header that does not fit) travels on in the headers of
the hops that follow, rows stay where they are, and all ranks raise the same error after the last hop. So nobody waits
for a rank that has given up, and the groups stay in step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from placement.errors import RankError
from placement.runtime.transport.base import Group

SCORES, IDS, MAP, LAYER, ROWS, WEIGHTS, MEMORY, SWAP = 1, 2, 3, 4, 5, 6, 7, 8
SWAP_LAYER = -1  # stands in the place of a layer's number while weights move
FAULTS = {
    SCORES: "has weights or scores that are not finite numbers, or loads beyond 0 to 1024; look at its router",
    IDS: "has expert ids that the model does not have; ids from 0 to {last_expert}, or -1 for none, are allowed",
    MAP: "uses another placement map than the others{sides}; load the same map on every rank",
    LAYER: "is at another layer or step than the others{sides} (here: layer {layer}, step {step}); every rank has to "
    "take part in every layer, without tokens too",
    ROWS: "has tokens of another size, type, top-k or capacity policy than the others{sides}, or other fixed shapes; "
    "give every rank the same",
    WEIGHTS: "got weights of an expert whose hash is not that of what was sent; the old map stays in force",
    MEMORY: "has no memory for the weights that come; give less staging_bytes",
    SWAP: "was asked for another swap than the others: another new map or other options; ask all for the same",
}
KIND_SHIFT, RANK_SHIFT, MOST_RANKS = 32, 16, (1 << 16) - 1
FIELDS = ("rows", "assignments", "fault", "tokens", "version", "layer", "step", "row_kind")
MUST_AGREE = {"version": MAP, "layer": LAYER, "step": LAYER, "row_kind": ROWS}
SAID = {"version": "map {:016x}", "layer": "layer {}", "step": "step {}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """What every member of a group must agree on."""

    version: int
    layer: int
    step: int
    row_kind: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """Headers on the host: rows for and from each member, sums over all members of what they announced to this one.

    `fault` is 0, or what was found or told; then no rows are to move. `headers` are those of all members.
    """

    send_rows: list[int]
    recv_rows: list[int]
    assignments: int
    tokens: int
    fault: int
    headers: list[list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcing:
    """Headers on their way: this rank's and room for the others', int64 [2 * members, fields]."""

    group: Group
    both: Tensor
    arrive: Callable[[], None]

    def read(self) -> Announced:
        """Wait for all headers: the one wait for the device."""
        self.arrive()
        table, size = self.group.host(self.both), len(self.group.ranks)
        sent, got = table[:size], table[size:]
        found = judge(got, self.group.ranks)
        return Announced(
            send_rows=[row[0] if not found else 0 for row in sent],
            recv_rows=[row[0] if not found else 0 for row in got],
            assignments=sum(row[1] for row in got) if not found else 0,
            tokens=sum(row[3] for row in got),
            fault=found,
            headers=got,
        )


def announce(
    group: Group, exchange: Exchange, rows_X: Tensor, assignments_X: Tensor, fault: Tensor | int, tokens: int
) -> Announced:
    """Swap headers, and wait for them; see `start_announcing`."""
    return start_announcing(group, exchange, rows_X, assignments_X, fault, tokens).read()


def start_announcing(
    group: Group, exchange: Exchange, rows_X: Tensor, assignments_X: Tensor, fault: Tensor | int, tokens: int
) -> Announcing:
    """Swap headers, one small all-to-all, while this rank does other things.

    rows_X, assignments_X  int64 [members], what this rank is about to send
    fault                  what this rank knows already, 0 for nothing
    tokens                 this rank's tokens; the answer has the group's sum
    """
    size = len(group.ranks)
    both = torch.empty((2 * size, len(FIELDS)), dtype=torch.int64, device=rows_X.device)
    mine = both[:size]
    mine[:] = _fixed_fields(exchange.version, exchange.layer, exchange.row_kind, rows_X.device)
    said = {"rows": rows_X, "assignments": assignments_X, "fault": fault, "tokens": tokens, "step": exchange.step}
    for field, value in said.items():
        mine[:, FIELDS.index(field)] = value
    return Announcing(group=group, both=both, arrive=group.start(mine, both[size:]))


@lru_cache(maxsize=1 << 12)
def _fixed_fields(version: int, layer: int, row_kind: int, device: torch.device) -> Tensor:
    """What does not change from step to step, on the device: to bring it there would make the host wait."""
    given = {"version": version, "layer": layer, "row_kind": row_kind}
    return torch.tensor([given.get(field, 0) for field in FIELDS], dtype=torch.int64, device=device)


def judge(headers: list[list[int]], ranks: tuple[int, ...]) -> int:
    """The fault of a group's headers, the same on all members: told faults first, else whoever is outvoted.

    Of equal votes it names a rank on either side.
    """
    told = [header[2] for header in headers if header[2]]
    if told:
        return min(told)
    first = FIELDS.index("version")
    if all(header[first:] == headers[0][first:] for header in headers):  # these must agree, and no others
        return 0
    for field, kind in MUST_AGREE.items():
        camps = _camps(headers, ranks, field)
        if len(camps) > 1:
            outvoted = camps[1][1][0]
            return fault_of(kind, outvoted, outvoted if _is_majority(camps) else camps[0][1][0])
    return 0


def fault_of(kind: int, rank: int, other: int | None = None) -> int:
    """A fault of `rank`, or of one of two ranks, as one number."""
    return kind << KIND_SHIFT | rank << RANK_SHIFT | (rank if other is None else other)


def fault_error(fault: int, exchange: Exchange, num_experts: int) -> RankError:
    """The error of a fault, which names the rank, or both where it is one of two."""
    kind, rank, other = fault >> KIND_SHIFT, fault >> RANK_SHIFT & MOST_RANKS, fault & MOST_RANKS
    names = sorted({rank, other})
    return _error(kind, " or rank ".join(map(str, names)), "", tuple(names), exchange, num_experts)


def settled_error(
    announced: Announced, group: Group, world: Group, exchange: Exchange, num_experts: int, device: torch.device
) -> RankError:
    """As `fault_error` for what `group` announced last; where ranks contradict one another, with all that they say.

    Two nodes are pairs of ranks, and of two nobody knows who is right: then all of `world`, which have all been told
    of the fault, swap headers once more. Of equal votes all sides are named.
    """
    kind = announced.fault >> KIND_SHIFT
    if kind not in MUST_AGREE.values():
        return fault_error(announced.fault, exchange, num_experts)
    headers = announced.headers
    if len(group.ranks) < len(world.ranks):
        nothing = torch.zeros(len(world.ranks), dtype=torch.int64, device=device)
        headers = announce(world, exchange, nothing, nothing, announced.fault, 0).headers
    for field, its_kind in MUST_AGREE.items():
        camps = _camps(headers, world.ranks, field)
        if its_kind == kind and len(camps) > 1:
            wrong = camps[1:] if _is_majority(camps) else camps
            said = [f"rank {_list(ranks)}: {SAID[field].format(value)}" for value, ranks in camps if field in SAID]
            names = " or rank ".join(_list(ranks) for _, ranks in wrong)
            found = tuple(rank for _, ranks in wrong for rank in ranks)
            return _error(kind, names, f" ({'; '.join(said)})" if said else "", found, exchange, num_experts)
    return fault_error(announced.fault, exchange, num_experts)


def _camps(headers: list[list[int]], ranks: tuple[int, ...], field: str) -> list[tuple[int, list[int]]]:
    """What headers say in a field and who says so, the largest camp first, then that of the lowest rank."""
    said: dict[int, list[int]] = {}
    for rank, header in zip(ranks, headers, strict=True):
        said.setdefault(header[FIELDS.index(field)], []).append(rank)
    return sorted(said.items(), key=lambda camp: -len(camp[1]))


def _is_majority(camps: list[tuple[int, list[int]]]) -> bool:
    return len(camps[0][1]) > len(camps[1][1])


def _error(
    kind: int, names: str, sides: str, ranks: tuple[int, ...], exchange: Exchange, num_experts: int
) -> RankError:
    layer = "of a swap" if exchange.layer == SWAP_LAYER else f"{exchange.layer}"
    words = FAULTS[kind].format(layer=layer, step=exchange.step, last_expert=num_experts - 1, sides=sides)
    here = f"layer {layer}, step {exchange.step}: " if kind != LAYER else ""
    return RankError(f"{here}rank {names} {words}", ranks)


def _list(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks))
