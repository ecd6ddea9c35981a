"""`placement watch --server`: the map in use is one of the service's, and so are the proposals."""

from __future__ import annotations

import tempfile
from pathlib import Path

from placement.client import Client
from placement.core.cluster import Cluster
from placement.core.placement import Placement
from placement.documents.placement import PlacementFile, load_placement
from placement.solvers.options import Options
from placement.support.atomic_files import write_atomic
from placement.workload.as_trace import write_sample
from placement.workload.workload import Workload


class Service:
    """Solves there, each answer a change of the placement `current`, an id."""

    def __init__(self, client: Client, current: str) -> None:
        self._client = client
        self.current = self.proposed = current

    def placement(self) -> tuple[Placement, PlacementFile]:
        """The map in use. Raises InputError where the service has none of that id."""
        return self._load(self.current)

    def solve(self, workload: Workload, cluster: Cluster, options: Options) -> Placement:
        """Upload the sampled tokens and have them solved; `proposed` is then the id of the answer."""
        with tempfile.TemporaryDirectory(prefix="placement-watch-") as scratch:
            trace = self._client.upload(write_sample(workload, Path(scratch) / "window"))
        self.proposed = self._client.submit([trace], cluster, options, holdout=0.0, current=self.current)
        self._client.wait(self.proposed)
        return self._load(self.proposed)[0]

    def follow(self) -> str:
        """The proposal is in use from now on; returns its id."""
        self.current = self.proposed
        return self.current

    def _load(self, placement: str) -> tuple[Placement, PlacementFile]:
        with tempfile.TemporaryDirectory(prefix="placement-watch-") as scratch:
            path = Path(scratch) / "placement.json"
            write_atomic(path, self._client.placement(placement))
            return load_placement(path)
