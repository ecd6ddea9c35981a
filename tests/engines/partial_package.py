"""Imports of single modules of an engine from its unpacked wheel; all other modules of its package are stand-ins."""

from __future__ import annotations

from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock


class StandIn(ModuleType):
    """A module in which everything can be found, and nothing is anything."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, MagicMock(name=f"{self.__name__}.{name}"))
        return self.__dict__[name]


class PartialPackage(MetaPathFinder, Loader):
    """Finds the named modules of a package in an unpacked wheel, and stand-ins for all others."""

    def __init__(self, folder: Path, package: str, real: tuple[str, ...]) -> None:
        self.folder, self.package, self.real = folder, package, real

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self.package and not name.startswith(f"{self.package}."):
            return None
        if name not in self.real:
            return ModuleSpec(name, self, is_package=True)
        file = self.folder.joinpath(*name.split("."))
        if file.is_dir():
            return spec_from_file_location(name, file / "__init__.py", submodule_search_locations=[str(file)])
        return spec_from_file_location(name, file.with_suffix(".py"))

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Stand-ins have nothing to run."""
