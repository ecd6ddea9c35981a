"""Which options of `placement solve` go together, said before any work; what it writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from placement.errors import OptionError


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What a solve writes; None where an option was not given."""

    placement: Path
    report: Path | None
    migration: Path | None
    grouping: Path | None
    maps: Path | None
    pareto: Path | None

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
