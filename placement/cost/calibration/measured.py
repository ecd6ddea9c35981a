"""The table of step times that users measure: a CSV with `map`, `step_tokens`, `time_us` and maybe `phase`."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from placement.cost.steps.given import parse_step_tokens
from placement.errors import InputError, OptionError
from placement.traces.classes import PHASES

NEEDED, ALLOWED = ("map", "step_tokens", "time_us"), ("map", "step_tokens", "time_us", "phase")
MOST_ROWS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredStep:
    """One row.

    Attributes:
        where: File and line, for messages.
        map: Placement file of the map that ran.
        step_tokens: Tokens that each GPU brought to the step.
        time_us: What the MoE layers of the step took, microseconds.
        phase: `prefill` or `decode`; None: not said.
    """

    where: str
    map: Path
    step_tokens: int
    time_us: float
    phase: str | None


def read_measured(path: str | Path) -> list[MeasuredStep]:
    """Read a table of measured times.

    Args:
        path: The table. A map is the path of a placement file, seen from the table's folder, with or without `.json`.

    Raises:
        InputError: The file cannot be read, is no such table, or a row says what cannot be; the message has the line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give a CSV with {', '.join(NEEDED)}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text; give a CSV with {', '.join(NEEDED)}") from None
    try:
        lines = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text, newline=""), strict=True)]
    except csv.Error as error:
        raise InputError(f"{path} is not CSV: {error}") from None
    numbered = [(number, row) for number, row in enumerate(lines, 1) if any(row)]
    if not numbered:
        raise InputError(f"{path} is empty; the first line has to name {', '.join(NEEDED)}")
    _, head = numbered[0]
    unknown = [name for name in head if name not in ALLOWED]
    missing = [name for name in NEEDED if name not in head]
    if unknown or missing or len(set(head)) < len(head):
        what = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(unknown or head)[:80]!r}"
        raise InputError(
            f"{path}: the first line {what}; it has to name each of {', '.join(NEEDED)} once, and may name phase"
        )
    if not 2 <= len(numbered) - 1 <= MOST_ROWS:
        raise InputError(f"measured times in {path}: {len(numbered) - 1}; 2 to {MOST_ROWS} are needed")
    return [_row(path, number, head, row) for number, row in numbered[1:]]


def _row(path: Path, number: int, head: list[str], row: list[str]) -> MeasuredStep:
    where = f"{path} line {number}"
    if len(row) != len(head):
        raise InputError(f"{where} has {len(row)} cells where the first line has {len(head)}")
    cell = dict(zip(head, row, strict=True))
    try:
        (tokens,) = parse_step_tokens(cell["step_tokens"])
    except (OptionError, ValueError):
        raise InputError(
            f"{where}: step_tokens={cell['step_tokens'][:24]!r} must be a whole number of tokens a GPU, 1 to 2^24"
        ) from None
    try:
        time_us = float(cell["time_us"])
    except ValueError:
        time_us = float("nan")
    if not 0 < time_us < 1e15:
        raise InputError(f"{where}: time_us={cell['time_us'][:24]!r} must be a number of microseconds above 0")
    phase = cell.get("phase") or None
    if phase is not None and phase not in PHASES:
        raise InputError(
            f"{where}: phase={phase[:24]!r} is unknown; choose one of {', '.join(PHASES)}, or leave it empty"
        )
    return MeasuredStep(
        where=where, map=_map(path, where, cell["map"]), step_tokens=tokens, time_us=time_us, phase=phase
    )


def _map(path: Path, where: str, name: str) -> Path:
    given = path.parent / name
    for file in (given, given.with_name(f"{given.name}.json")) if name else ():
        if file.is_file():
            return file
    raise InputError(f"{where}: map={name[:80]!r} is no placement file in {path.parent}; give its path from there")
