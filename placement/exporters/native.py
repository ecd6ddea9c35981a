"""Our own format: the map alone, without what was measured."""

from __future__ import annotations

from placement.core.placement import Placement
from placement.documents.placement import PlacementFile
from placement.exporters.base import DEFAULTS, Export, ExportOptions


class Native:
    name = "native"
    suffixes = (".json",)
    takes_load = False
    replica_choices: tuple[str, ...] = ()
    transport = "node"

    def export(self, placement: Placement, options: ExportOptions = DEFAULTS) -> Export:
        return Export(content=PlacementFile.of(placement).content())
