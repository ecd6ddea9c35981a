"""Homes for the map in use, learned again from the newest requests, in a grouping file that is replaced as a whole."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from placement.analysis.watch.newest import NewestTraces
from placement.core.choices import TOKEN_TOLERANCE
from placement.core.cluster import Cluster
from placement.core.migration import map_digest
from placement.core.placement import Placement
from placement.errors import OptionError
from placement.grouping.grouping_file import load_grouping
from placement.pipeline.documents.grouping_document import grouping_file
from placement.pipeline.with_homes import check_grouping, solve_grouped
from placement.solvers.options import Options
from placement.support.atomic_files import write_atomic


class KeptHomes:
    """A grouping file that follows the map and the requests; whoever reads it finds the old one or the new one.

    Args:
        path: The file. Where there is one already, its tolerance is kept, and it is good as long as its map is in use.
        cluster: Where the map runs.
        options: Transport, replica choice and seed of the homes; the rest does not count.

    Raises:
        InputError: The file is there and is no grouping file.
        OptionError: Homes make no difference under these options.
    """

    def __init__(self, path: Path, cluster: Cluster, options: Options) -> None:
        self.path, self._cluster = path, cluster
        self._options = replace(options, max_moves=None, max_moves_per_layer=None)
        self._scratch = tempfile.TemporaryDirectory(prefix="placement-watch-")
        self.newest = NewestTraces(Path(self._scratch.name))
        self._tolerance, self._for = TOKEN_TOLERANCE, ""
        if path.exists():
            before = load_grouping(path)
            self._tolerance, self._for = before.balance.tolerance, before.placement_hash
        check_grouping(cluster, self._options, home_from=None, tolerance=self._tolerance)

    def good_for(self, placement: Placement) -> bool:
        """Whether the file is for this map."""
        return self._for == map_digest(placement)

    def write(self, placement: Placement, *copies: Path, workers: int | None = None) -> None:
        """Learn homes for this map from the newest requests, and replace the file, and each of `copies`.

        Raises:
            PlacementError: Homes cannot be learned, or a file cannot be written; the file is as it was.
        """
        trace = self.newest.trace()
        if trace is None:
            raise OptionError("no requests came from which homes can be learned; wait for more")
        grouped = solve_grouped(
            trace, self._cluster, self._options, placement=placement, tolerance=self._tolerance, workers=workers
        )
        content = grouping_file(grouped).content()
        for path in (*copies, self.path):
            write_atomic(path, content)
        self._for = map_digest(placement)
