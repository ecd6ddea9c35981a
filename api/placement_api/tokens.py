"""Bearer tokens: who asks, and what they may. Only hashes are kept: a token is 256 random bits, shown once."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from fastapi import Request
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from placement.errors import OptionError
from placement_api.memory import Fresh
from placement_api.problems import Problem
from placement_api.store.database import Database
from placement_api.store.tables import TokenRow

SCOPES = ("read", "solve", "admin")  # each also allows what stands before it
PREFIX = "plc_"
LEAST_LETTERS = 32  # of a token that was made elsewhere
COOKIE = "placement_token"  # of the page, set by /login
SURE_S = 1.0  # a token that was deleted works for at most so long
MOST_REMEMBERED = 10_000
FROM_MEMORY = 0.02  # the price of a request that is answered from memory
ANYONE = "anyone"
log = logging.getLogger("placement.service")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    id: str
    scopes: tuple[str, ...]

    def may(self, scope: str) -> bool:
        return any(SCOPES.index(own) >= SCOPES.index(scope) for own in self.scopes)


@dataclass(slots=True, kw_only=True)
class Tokens:
    """`caller`, `check` and `spend` belong to the event loop, the others to any thread.

    _anyone   requests without a token are let in while there is no token at all; `start` decides, and nothing later
    _none     there was no token at the last look
    """

    database: Database
    requests_per_s: float
    _callers: Fresh[Caller] = field(default_factory=lambda: Fresh(MOST_REMEMBERED, SURE_S))
    _buckets: dict[str, tuple[float, float]] = field(default_factory=dict)
    _anyone: bool = False
    _none: bool = False

    def start(self, *, loopback: bool) -> None:
        """Open the door to anyone where only this machine can reach the service and no token shuts it."""
        none = not self.exist()
        self._anyone = loopback and none
        self._notice(none=none)

    def create(self, name: str, scopes: list[str]) -> str:
        """A new token, which nobody can find out later. Raises OptionError."""
        token = PREFIX + secrets.token_urlsafe(32)
        self._add(name, scopes, token)
        return token

    def admit(self, name: str, scopes: list[str], token: str) -> None:
        """Make a token known that was made elsewhere; if it is known, nothing happens. Raises OptionError."""
        if len(token) < LEAST_LETTERS or not token.isascii() or not token.isprintable() or " " in token:
            raise OptionError(
                f"the token is too short ({len(token)} letters), or has letters that no header takes; give "
                f"{LEAST_LETTERS} random ones or more, as openssl rand -hex 32 prints"
            )
        with contextlib.suppress(IntegrityError):
            self._add(name, scopes, token)

    def _add(self, name: str, scopes: list[str], token: str) -> None:
        unknown = [scope for scope in scopes if scope not in SCOPES]
        if unknown or not scopes:
            raise OptionError(f"scope {', '.join(unknown) or 'none'} is unknown; choose of {', '.join(SCOPES)}")
        if not name.strip() or len(name) > 200 or not name.isprintable():
            raise OptionError(f"the name {name[:60]!r} is no name of a token; give 1 to 200 printable letters")
        row = TokenRow(id=secrets.token_hex(8), name=name, hash=_hash(token), scopes=list(scopes), created=time.time())
        with self.database.session() as session:
            session.add(row)

    def list(self) -> list[TokenRow]:
        with self.database.reading() as session:
            return list(session.scalars(select(TokenRow).order_by(TokenRow.created)))

    def delete(self, name: str, *, force: bool = False) -> int:
        """Delete the tokens of a name or id.

        Args:
            name: The name or the id.
            force: Delete them also if no other token is left.

        Returns:
            How many there were.

        Raises:
            OptionError: They are the last ones.
        """
        with self.database.session() as session:
            rows = session.scalars(select(TokenRow).order_by(TokenRow.id).with_for_update()).all()
            gone = [row for row in rows if name in (row.name, row.id)]
            if gone and len(gone) == len(rows) and not force:
                raise OptionError(
                    f"{name!r} is the last token, and without one a service that others can reach answers nobody; "
                    f"make another with placement token create first, or give --force"
                )
            for row in gone:
                session.delete(row)
            return len(gone)

    def exist(self) -> bool:
        with self.database.reading() as session:
            return bool(session.scalar(select(func.count()).select_from(TokenRow)))

    async def caller(self, authorization: str | None) -> Caller:
        """Whom the header names; anyone where `start` let anyone in and there is no token. Raises Problem."""
        kind, _, token = (authorization or "").partition(" ")
        given = _hash(token.strip()) if kind.lower() == "bearer" else ""
        found = await self._callers.get(given, partial(self._look_up, given))
        if found is None:
            raise Problem(
                401,
                "the token is unknown" if given else "the request has no token",
                "send Authorization: Bearer TOKEN; make one with placement token create",
                WWW_Authenticate="Bearer",
            )
        return found

    def check(self, caller: Caller) -> None:
        """Raises Problem (429) where a caller asks faster than allowed for more than a second."""
        if self._left(caller) < 0.0:
            raise Problem(429, f"more than {self.requests_per_s:g} requests a second", "wait a second", Retry_After="1")

    def spend(self, caller: Caller, price: float) -> None:
        """Count a request: `price` is 1, or less if it costs the service less."""
        self._buckets[caller.id] = (self._left(caller) - price, time.monotonic())

    def _left(self, caller: Caller) -> float:
        rate = self.requests_per_s
        left, then = self._buckets.get(caller.id, (rate, 0.0))
        return min(rate, left + (time.monotonic() - then) * rate)

    def _look_up(self, given: str) -> Caller | None:
        with self.database.reading() as session:
            row = session.scalars(select(TokenRow).where(TokenRow.hash == given)).one_or_none()
        none = row is None and not self.exist()
        self._notice(none=none)
        if row is not None:
            return Caller(id=row.id, scopes=tuple(row.scopes))
        return Caller(id=ANYONE, scopes=SCOPES) if none and self._anyone and not given else None

    def _notice(self, *, none: bool) -> None:
        if none and not self._none and self._anyone:
            log.warning("there is no token: anyone on this machine may do everything")
        elif none and not self._none:
            log.warning("there is no token: every request is refused until one is made, with placement token create")
        self._none = none


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def allow(scope: str, price: float = 1.0) -> Callable[[Request], Awaitable[Caller]]:
    """Of a route: who asks must have this scope, and pays that many requests."""

    async def check(request: Request) -> Caller:  # async: others are run in a thread
        caller: Caller = request.state.caller
        request.app.state.service.tokens.spend(caller, price)
        if not caller.may(scope):
            raise Problem(403, f"this token may not {scope}", f"use a token of scope {scope}")
        return caller

    return check
