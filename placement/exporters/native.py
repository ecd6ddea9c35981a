"""Our own format: the map alone, without what was measured."""

from __future__ import annotations

from placement.exporters.base import DEFAULTS, Export, ExportOptions
from placement.placement_json import document_bytes, placement_document
from placement.placement_map import Placement


class Native:
    name = "native"
    suffixes = (".json",)
    takes_load = False
    replica_choices: tuple[str, ...] = ()

    def export(self, placement: Placement, options: ExportOptions = DEFAULTS) -> Export:
        return Export(content=document_bytes(placement_document(placement)))
