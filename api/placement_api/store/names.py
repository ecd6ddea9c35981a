"""Placements under names: versions that never change, and aliases that are moved from one to another.

All versions of a name are of one model, shape of cluster and engine, so that an alias never brings a map to engines
which cannot load it. Moves are kept: the last move of an alias says where the alias points, and a rollback goes back to
what was promoted before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from placement_api.memory import Fresh
from placement_api.problems import Problem
from placement_api.store.database import Database
from placement_api.store.name_words import check_alias, check_name
from placement_api.store.tables import MoveRow, VersionRow

AT_ONCE = 5  # writers that collide try so often
SURE_S, MOST_WATCHED = 0.5, 10_000  # where an alias points is looked up once for all who wait for its next move
MOST_BACK = 100  # promotions that can be rolled back
PROMOTED, ROLLED_BACK, REMOVED = "promoted", "rolled back", "removed"
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Any thread may use it, but for `watched`, which belongs to the event loop."""

    database: Database
    _watched: Fresh[tuple[VersionRow, MoveRow | None]] = field(default_factory=lambda: Fresh(MOST_WATCHED, SURE_S))

    def publish(self, given: VersionRow) -> tuple[VersionRow, bool]:
        """Keep the next version of a name; the version that has these files already, and False, if there is one.

        Raises Problem (409, 422): the name is none, or its versions are of another model, shape or engine.
        """
        check_name(given.name)

        def write(session: Session) -> tuple[VersionRow, bool]:
            kept = session.scalars(_versions(given.name)).all()
            for row in kept:
                if (row.digest, row.grouping) == (given.digest, given.grouping):
                    return row, False
            if kept:
                _check_same_shape(given.name, kept[-1].shape, given.shape)
            columns = {name: getattr(given, name) for name in VersionRow.__table__.columns.keys()}  # noqa: SIM118 - columns, not names
            row = VersionRow(**columns | {"version": kept[-1].version + 1 if kept else 1, "created": time.time()})
            session.add(row)
            session.flush()
            return row, True

        return self._written(write)

    def promote(self, name: str, alias: str, version: int, *, expect: int | None, note: str, caller: str) -> MoveRow:
        """Point an alias at a version. `expect`: the version that the alias must have now; None: any or none.

        Raises Problem (404, 409, 422).
        """
        check_alias(alias)

        def write(session: Session) -> MoveRow:
            _version(session, name, version)
            last = _last(session, name, alias)
            held = [] if last is None else last.held
            if held and held[-1] == version:
                return last  # type: ignore[return-value]
            return _moved(session, name, alias, last, PROMOTED, [*held, version][-MOST_BACK:], expect, note, caller)

        return self._written(write)

    def roll_back(self, name: str, alias: str, *, expect: int | None, note: str, caller: str) -> MoveRow:
        """Point an alias at what was promoted before its version. Raises Problem (404, 409)."""

        def write(session: Session) -> MoveRow:
            last = _held(session, name, alias)
            if len(last.held) < 2:
                raise Problem(
                    409,
                    f"{name}@{alias} has had no version before {last.held[-1]}",
                    "promote the version that is wanted",
                )
            return _moved(session, name, alias, last, ROLLED_BACK, last.held[:-1], expect, note, caller)

        return self._written(write)

    def remove(self, name: str, alias: str, *, caller: str) -> None:
        """Remove an alias; its history stays. Raises Problem (404)."""

        def write(session: Session) -> None:
            last = _held(session, name, alias)
            _moved(session, name, alias, last, REMOVED, [], None, "", caller)

        self._written(write)

    def delete(self, name: str, version: int) -> None:
        """Delete a version, not the latest, that no alias has or can be rolled back to. Raises Problem (404, 409)."""

        def write(session: Session) -> None:
            row = _version(session, name, version)
            if using := sorted(move.alias for move in _last_moves(session, name) if version in move.held):
                raise Problem(
                    409,
                    f"version {version} of {name} is the one that {', '.join(using)} has, or had before",
                    "remove the alias first, or promote another version under a new one",
                )
            if version == session.scalar(select(func.max(VersionRow.version)).where(VersionRow.name == name)):
                raise Problem(
                    409,
                    f"version {version} is the latest of {name}: its number would be given again",
                    "publish another version first",
                )
            session.delete(row)

        self._written(write)

    def resolve(self, name: str, word: str) -> tuple[VersionRow, MoveRow | None]:
        """The version of an alias, with the move that brought it; or of a number. Raises Problem (404)."""
        with self.database.reading() as session:
            if word.isdecimal():
                return _version(session, name, int(word[:18])), None
            move = _held(session, name, word)
            return _version(session, name, move.held[-1]), move

    async def watched(self, name: str, word: str) -> tuple[VersionRow, MoveRow | None]:
        """As `resolve`, of less than a second ago. Raises Problem (404)."""
        found = await self._watched.get((name, word), lambda: self.resolve(name, word))
        if found is None:
            raise _no_name(name)
        return found

    def of(self, name: str) -> tuple[Sequence[VersionRow], Sequence[MoveRow], Sequence[MoveRow]]:
        """Versions, newest first; where each alias points; all moves, newest first. Raises Problem (404)."""
        with self.database.reading() as session:
            versions = session.scalars(_versions(name)).all()
            if not versions:
                raise _no_name(name)
            moves = session.scalars(select(MoveRow).where(MoveRow.name == name).order_by(MoveRow.id.desc())).all()
            return versions[::-1], [move for move in _last_moves(session, name) if move.held], moves

    def all(self) -> list[tuple[str, int, dict[str, int]]]:
        """Each name, its latest version, and the version of each alias."""
        with self.database.reading() as session:
            latest = select(VersionRow.name, func.max(VersionRow.version)).group_by(VersionRow.name)
            rows = session.execute(latest.order_by(VersionRow.name)).all()
            found: dict[str, dict[str, int]] = {name: {} for name, _ in rows}
            for move in _last_moves(session, None):
                if move.held and move.name in found:
                    found[move.name][move.alias] = move.held[-1]
        return [(name, version, found[name]) for name, version in rows]

    def _written(self, write: Callable[[Session], T]) -> T:
        """What `write` returns, in a transaction that is tried again where another writer was faster."""
        for attempt in range(AT_ONCE):
            try:
                with self.database.session() as session:
                    return write(session)
            except IntegrityError:
                if attempt == AT_ONCE - 1:
                    break
        raise Problem(409, "others change this name at the same time", "try again")


def kept_digests(session: Session) -> set[str]:
    """Digests of the files that versions name."""
    rows = session.execute(select(VersionRow.digest, VersionRow.grouping)).all()
    return {digest for row in rows for digest in row if digest is not None}


def _versions(name: str) -> Any:
    return select(VersionRow).where(VersionRow.name == name).order_by(VersionRow.version)


def _version(session: Session, name: str, version: int) -> VersionRow:
    row = session.get(VersionRow, (name, version))
    if row is None:
        raise _lacks(session, name, f"version {version}")
    return row


def _last(session: Session, name: str, alias: str) -> MoveRow | None:
    wanted = select(MoveRow).where(MoveRow.name == name, MoveRow.alias == alias)
    return session.scalars(wanted.order_by(MoveRow.serial.desc()).limit(1)).one_or_none()


def _held(session: Session, name: str, alias: str) -> MoveRow:
    last = _last(session, name, alias)
    if last is None or not last.held:
        raise _lacks(session, name, f"alias {alias[:60]!r}")
    return last


def _last_moves(session: Session, name: str | None) -> list[MoveRow]:
    """The last move of each alias of a name, or of all names."""
    last = select(func.max(MoveRow.id)).group_by(MoveRow.name, MoveRow.alias)
    if name is not None:
        last = last.where(MoveRow.name == name)
    return list(session.scalars(select(MoveRow).where(MoveRow.id.in_(last)).order_by(MoveRow.alias)))


def _moved(
    session: Session,
    name: str,
    alias: str,
    last: MoveRow | None,
    kind: str,
    held: list[int],
    expect: int | None,
    note: str,
    caller: str,
) -> MoveRow:
    before = last.held[-1] if last is not None and last.held else None
    if expect is not None and before != expect:
        has = "points nowhere" if before is None else f"has version {before}"
        raise Problem(409, f"{name}@{alias} {has}, not {expect}", "look at its history, and say what is expected now")
    row = MoveRow(
        name=name,
        alias=alias,
        serial=0 if last is None else last.serial + 1,  # two movers at once collide here
        kind=kind,
        before=before,
        held=held,
        note=note,
        caller=caller,
        moved=time.time(),
    )
    session.add(row)
    session.flush()
    return row


def _check_same_shape(name: str, kept: dict[str, Any], given: dict[str, Any]) -> None:
    """The guard: engines that follow an alias can load every version of its name."""
    for key, value in kept.items():
        if given.get(key) != value:
            raise Problem(
                409,
                f"the versions of {name} have {key} {value}, this placement has {given.get(key)}",
                "publish it under another name",
            )


def _lacks(session: Session, name: str, what: str) -> Problem:
    """Why there is nothing: the name has no such thing, or is none itself."""
    if session.scalar(select(VersionRow.version).where(VersionRow.name == name).limit(1)) is None:
        return _no_name(name)
    return Problem(404, f"{name[:80]} has no {what}", "see what there is at GET /v1/names/NAME")


def _no_name(name: str) -> Problem:
    return Problem(404, f"there is no name {name[:80]!r}", "list what there is with GET /v1/names")
