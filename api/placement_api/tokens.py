"""Bearer tokens of requests: who asks, and what they may. Only hashes are kept (`token_book`)."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from fastapi import Request
from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from placement_api.memory import Fresh, Memory
from placement_api.problems import Problem
from placement_api.rates import Rates
from placement_api.store.database import AWAY, Database
from placement_api.store.tables import TokenRow
from placement_api.token_book import SCOPES, hash_of

COOKIE = "placement_token"  # of the page, set by /login
SURE_S = 1.0  # a token that was deleted works for at most so long
USED_S = 60.0  # how exactly it is kept when a token was used last
MOST_REMEMBERED = 10_000
FROM_MEMORY = 0.02  # the price of a request that is answered from memory
ANYONE = "anyone"
log = logging.getLogger("placement.service")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    id: str
    name: str
    scopes: tuple[str, ...]

    def may(self, scope: str) -> bool:
        return any(SCOPES.index(own) >= SCOPES.index(scope) for own in self.scopes)

    def check_owns(self, owner: str, what: str) -> None:
        """Raise Problem (403) unless what is to be changed is the caller's, or nobody's, or the caller may do all."""
        if owner and owner != self.id and not self.may("admin"):
            raise Problem(403, f"this {what} is another token's", "use the token that made it, or one of scope admin")


@dataclass(slots=True, kw_only=True)
class Tokens:
    """All but `start` and `exist`, which are any thread's, belongs to the event loop.

    _anyone   requests without a token are let in while there is no token at all; `start` decides, and nothing later
    _none     there was no token at the last look
    """

    database: Database
    requests_per_s: float
    _callers: Fresh[Caller] = field(default_factory=lambda: Fresh(MOST_REMEMBERED, SURE_S))
    _right: Memory[bool] = field(default_factory=lambda: Memory(MOST_REMEMBERED))  # of the hashes of tokens
    _rates: Rates = field(init=False)
    _anyone: bool = False
    _none: bool = False

    def __post_init__(self) -> None:
        self._rates = Rates(per_s=self.requests_per_s)

    def start(self, *, loopback: bool) -> None:
        """Open the door to anyone where only this machine can reach the service and no token shuts it."""
        none = not self.exist()
        self._anyone = loopback and none
        self._notice(none=none)

    def exist(self) -> bool:
        with self.database.reading() as session:
            return bool(session.scalar(select(func.count()).select_from(TokenRow)))

    def vouches(self, authorization: str | None) -> bool:
        """Whether the header was right when it was asked last: it costs its address nothing to ask again."""
        return self._right.get(_given(authorization)) is not None

    def known(self, authorization: str | None) -> Caller | None:
        """Whom the header names, if that was asked less than a second ago and who it is may ask again now."""
        given = _given(authorization)
        if self._right.get(given) is None:
            return None
        found = self._callers.known(given, partial(self._look_up, given))
        return None if found is None or self._rates.left(found.id) < 0.0 else found

    async def caller(self, authorization: str | None) -> Caller:
        """Whom the header names; anyone where `start` let anyone in and there is no token. Raises Problem."""
        given = _given(authorization)
        found = await self._callers.get(given, partial(self._look_up, given))
        if found is None:
            self._right.drop(given)
            raise Problem(
                401,
                "the token is unknown, or no longer valid" if given else "the request has no token",
                "send Authorization: Bearer TOKEN; make one with placement token create",
                WWW_Authenticate="Bearer",
            )
        self._right.put(given, True)
        return found

    def check(self, caller: Caller) -> None:
        """Raises Problem (429) where a caller asks faster than allowed for more than a second."""
        if self._rates.left(caller.id) < 0.0:
            raise Problem(429, f"more than {self.requests_per_s:g} requests a second", "wait a second", Retry_After="1")

    def spend(self, caller: Caller, price: float) -> None:
        """Count a request: `price` is 1, or less if it costs the service less."""
        self._rates.spend(caller.id, price)

    def _look_up(self, given: str) -> Caller | None:
        now = time.time()
        with self.database.reading() as session:
            row = _row(session, given, now)
        none = row is None and not self.exist()
        self._notice(none=none)
        if row is not None:
            self._note_use(row, now)
            return Caller(id=row.id, name=row.name, scopes=tuple(row.scopes))
        return Caller(id=ANYONE, name="", scopes=SCOPES) if none and self._anyone and not given else None

    def _note_use(self, row: TokenRow, now: float) -> None:
        """Keep when a token was used, to the minute; who asks is answered though that cannot be written."""
        if row.used is None or now - row.used >= USED_S:
            with suppress(*AWAY), self.database.session() as session:
                session.execute(update(TokenRow).where(TokenRow.id == row.id).values(used=now))

    def _notice(self, *, none: bool) -> None:
        if none and not self._none and self._anyone:
            log.warning("there is no token: anyone on this machine may do everything")
        elif none and not self._none:
            log.warning("there is no token: every request is refused until one is made, with placement token create")
        self._none = none


def _given(authorization: str | None) -> str:
    """The hash of the token of a header; empty where there is none."""
    kind, _, token = (authorization or "").partition(" ")
    return hash_of(token.strip()) if kind.lower() == "bearer" else ""


def _row(session: Session, given: str, now: float) -> TokenRow | None:
    """The token of a hash: its own, or the one that it replaced and that is valid for a while yet."""
    replaced = (TokenRow.old_hash == given) & (TokenRow.old_expires > now)
    valid = or_(TokenRow.expires.is_(None), TokenRow.expires > now)
    found = session.scalars(select(TokenRow).where((TokenRow.hash == given) | replaced, valid))
    return found.first() if given else None


def allow(scope: str, price: float = 1.0) -> Callable[[Request], Awaitable[Caller]]:
    """Of a route: who asks must have this scope, and pays that many requests."""

    async def check(request: Request) -> Caller:  # async: others are run in a thread
        caller: Caller = request.state.caller
        request.app.state.service.tokens.spend(caller, price)
        if not caller.may(scope):
            raise Problem(403, f"this token may not {scope}", f"use a token of scope {scope}")
        return caller

    return check
