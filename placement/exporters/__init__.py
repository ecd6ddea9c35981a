"""The registry: an exporter is one file and one line here."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from placement.errors import OptionError
from placement.exporters.base import Export, Exporter

EXPORTERS = {
    "native": "placement.exporters.native:Native",
    "sglang": "placement.exporters.sglang:SGLang",
}


def get_exporter(name: str) -> Exporter:
    """The exporter of that name. Raises OptionError."""
    if name not in EXPORTERS:
        raise OptionError(f"--to {name!r} is unknown; choose one of {', '.join(EXPORTERS)}")
    module, attribute = EXPORTERS[name].split(":")
    return cast(Exporter, getattr(import_module(module), attribute)())


__all__ = ["EXPORTERS", "Export", "Exporter", "get_exporter"]
