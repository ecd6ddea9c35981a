"""Our own format: the map alone, without what was measured."""

from __future__ import annotations

from placement.exporters.base import Export
from placement.placement_json import document_bytes, placement_document
from placement.placement_map import Placement


class Native:
    name = "native"
    suffix = ".json"

    def export(self, placement: Placement) -> Export:
        return Export(content=document_bytes(placement_document(placement)))
