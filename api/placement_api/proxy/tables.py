"""The files that homes rest on: read and checked together, at the start and whenever they change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from placement.core.migration import map_digest
from placement.core.placement import Placement
from placement.documents.placement import load_placement
from placement.errors import InputError, OptionError
from placement.grouping.grouping_file import load_grouping
from placement.grouping.router import Router


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a request can be sent.

    Attributes:
        node: Its node.
        backend: Position of the backend.
        rank: Data-parallel rank within the backend; None: the backend is told none.
    """

    node: int
    backend: int
    rank: int | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tables:
    """What homes are decided from: the router, and all targets."""

    router: Router
    targets: tuple[Target, ...]

    @property
    def request_tokens(self) -> float:
        """Tokens of a request that says nothing of its length: the mean of those that the router was trained on."""
        prices = self.router.prices
        return self.router.slack_tokens if prices is None else prices.request_tokens


@dataclass(slots=True, kw_only=True)
class Files:
    """A placement file and the grouping for it.

    Attributes:
        map_file: The placement file.
        grouping_file: The grouping file.
        backends: How many backends there are.
        ranks: Data-parallel ranks of the one backend; None: one for each GPU of the map.
    """

    map_file: Path
    grouping_file: Path
    backends: int
    ranks: int | None = None
    _seen: tuple[object, ...] = ()

    def load(self) -> Tables:
        """Read both files.

        Raises:
            InputError: A file cannot be read or is not sound, or the two do not belong together.
            OptionError: The backends or ranks do not fit the map.
        """
        self._seen = self._stamps()
        placement, _ = load_placement(self.map_file)
        grouping = load_grouping(self.grouping_file)
        grouping.check_fits(placement)
        if grouping.placement_hash != map_digest(placement):
            raise InputError(
                f"{self.grouping_file} is for another map than {self.map_file}; group again: placement group --map"
            )
        return Tables(router=grouping.router.router(), targets=targets_of(placement, self.backends, self.ranks))

    def changed(self) -> bool:
        """Whether a file is another than when they were read last."""
        return self._stamps() != self._seen

    def _stamps(self) -> tuple[object, ...]:
        return tuple(_stamp(path) for path in (self.map_file, self.grouping_file))


def targets_of(placement: Placement, backends: int, ranks: int | None = None) -> tuple[Target, ...]:
    """The targets of a map: the ranks of one backend, or several backends: one for each node, or for each rank.

    Raises:
        OptionError: The backends or ranks do not fit the map.
    """
    hosts: Sequence[int] = placement.rank_hosts or placement.node_of_rank_G().tolist()
    if backends > 1 and ranks is not None:
        raise OptionError("--ranks is of one backend; leave it out where each node or rank has a backend of its own")
    if backends > 1 and backends == placement.num_nodes:
        return tuple(Target(node=node, backend=node, rank=None) for node in range(backends))
    count = backends if backends > 1 else ranks or len(hosts)
    width, rest = divmod(len(hosts), count)
    what = f"{count} backends" if backends > 1 else f"--ranks {count}"
    if rest or not width:
        raise OptionError(
            f"{what}: the map has {placement.num_nodes} nodes and {len(hosts)} GPUs; give a backend for each node, or "
            f"as many backends or ranks as divide the GPUs"
        )
    nodes = [set(hosts[at * width : (at + 1) * width]) for at in range(count)]
    if any(len(one) > 1 for one in nodes):
        raise OptionError(f"{what}: {width} GPUs that follow one another are on more than one node; give more")
    return tuple(
        Target(node=one.pop(), backend=at if backends > 1 else 0, rank=None if backends > 1 else at)
        for at, one in enumerate(nodes)
    )


def _stamp(path: Path) -> object:
    try:
        stat = path.stat()
    except OSError as error:
        return error.errno
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
