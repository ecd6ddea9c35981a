"""Which options of `placement solve` go together, and whether its files can be written: said before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from placement.errors import OptionError
from placement.files import check_folder, check_writable


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What a solve writes; None where an option was not given."""

    placement: Path
    report: Path | None
    migration: Path | None
    grouping: Path | None
    maps: Path | None
    pareto: Path | None

    def check(self) -> None:
        """Raise OptionError now if a file could not be written later, or if two outputs are in each other's way."""
        files = {
            "--output": self.placement,
            "--report": self.report,
            "--migration-out": self.migration,
            "--grouping-out": self.grouping,
        }
        given = {option: path for option, path in files.items() if path is not None}
        for option, folder in (("--pareto", self.pareto), ("--maps-out", self.maps)):
            if folder is not None:
                _check_own_folder(option, folder, given)
        for (one, path), (other, same) in combinations(given.items(), 2):
            if path.resolve() == same.resolve():
                raise OptionError(f"{other} and {one} are both {path}; give each its own file")
        for path in given.values():
            check_writable(path)

    def named(self) -> str:
        """What was written, for the last line of the command."""
        paths = (self.placement, self.grouping, self.maps, self.migration, self.report, self.pareto)
        return " and ".join(str(path) for path in paths if path is not None)


def check_alone(option: str, others: Mapping[str, object]) -> None:
    """Raise OptionError if one of the others was given, too: not None and not False."""
    given = [name for name, value in others.items() if value is not None and value is not False]
    if given:
        raise OptionError(f"{option} and {' and '.join(given)} do not go together; leave one out")


def check_needed(option: str, why: str, others: Mapping[str, object]) -> None:
    """Raise OptionError if one of the others was given, which mean something only with `option`."""
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise OptionError(f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} {why}; add {option}")


def _check_own_folder(option: str, folder: Path, files: Mapping[str, Path]) -> None:
    """Raise if the folder could not be written later, or if other outputs lie in it or hold it."""
    check_folder(folder)
    for other, path in files.items():
        if path.resolve().is_relative_to(folder.resolve()) or folder.resolve().is_relative_to(path.resolve()):
            raise OptionError(f"{other} {path} and {option} {folder} overlap; give the maps a folder of their own")
