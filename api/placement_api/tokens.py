"""Bearer tokens: who asks, and what they may. Only hashes are kept: a token is 256 random bits, shown once."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi import Request
from sqlalchemy import func, select

from placement.errors import OptionError
from placement_api.memory import Memory, Once
from placement_api.problems import Problem
from placement_api.store.database import Database
from placement_api.store.tables import TokenRow

SCOPES = ("read", "solve", "admin")  # each also allows what stands before it
PREFIX = "plc_"
COOKIE = "placement_token"  # of the page, set by /login
REMEMBER_S = 1.0  # a token that was deleted works for so long
MOST_REMEMBERED = 10_000
FROM_MEMORY = 0.02  # of a request: what is counted of one that was answered from memory
ANYONE = "anyone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    id: str
    scopes: tuple[str, ...]

    def may(self, scope: str) -> bool:
        return any(SCOPES.index(own) >= SCOPES.index(scope) for own in self.scopes)


@dataclass(slots=True, kw_only=True)
class Tokens:
    """`caller`, `spend` and `refund` belong to the event loop, the others to any thread."""

    database: Database
    requests_per_s: float
    _callers: Memory[tuple[float, Caller | None]] = field(default_factory=lambda: Memory(MOST_REMEMBERED))
    _buckets: dict[str, tuple[float, float]] = field(default_factory=dict)
    _once: Once = field(default_factory=Once)

    def create(self, name: str, scopes: list[str]) -> str:
        """A new token, which nobody can find out later. Raises OptionError."""
        unknown = [scope for scope in scopes if scope not in SCOPES]
        if unknown or not scopes:
            raise OptionError(f"scope {', '.join(unknown) or 'none'} is unknown; choose of {', '.join(SCOPES)}")
        token = PREFIX + secrets.token_urlsafe(32)
        row = TokenRow(
            id=secrets.token_hex(8), name=name[:200], hash=_hash(token), scopes=list(scopes), created=time.time()
        )
        with self.database.session() as session:
            session.add(row)
        return token

    def list(self) -> list[TokenRow]:
        with self.database.reading() as session:
            return list(session.scalars(select(TokenRow).order_by(TokenRow.created)))

    def delete(self, name: str) -> int:
        """Delete the tokens of this name or id; how many there were."""
        with self.database.session() as session:
            rows = session.scalars(select(TokenRow).where((TokenRow.name == name) | (TokenRow.id == name))).all()
            for row in rows:
                session.delete(row)
            return len(rows)

    def exist(self) -> bool:
        with self.database.reading() as session:
            return bool(session.scalar(select(func.count()).select_from(TokenRow)))

    async def caller(self, authorization: str | None) -> Caller:
        """Whom the header names; anyone where there are no tokens, which is on loopback alone. Raises Problem."""
        kind, _, token = (authorization or "").partition(" ")
        given = _hash(token.strip()) if kind.lower() == "bearer" else ""
        found = await self._remembered(given)
        if found is None:
            raise Problem(
                401,
                "the token is unknown" if given else "the request has no token",
                "send Authorization: Bearer TOKEN; make one with placement token create",
                WWW_Authenticate="Bearer",
            )
        return found

    def spend(self, caller: Caller) -> None:
        """Count a request. Raises Problem (429) where a caller asks faster than allowed for more than a second."""
        now, rate = time.monotonic(), self.requests_per_s
        left, then = self._buckets.get(caller.id, (rate, now))
        left = min(rate, left + (now - then) * rate)
        self._buckets[caller.id] = (left if left < 1.0 else left - 1.0, now)
        if left < 1.0:
            raise Problem(429, f"more than {rate:g} requests a second", "wait and ask again", Retry_After="1")

    def refund(self, caller: Caller) -> None:
        """The request that was counted last was answered from memory."""
        left, then = self._buckets[caller.id]
        self._buckets[caller.id] = (left + 1.0 - FROM_MEMORY, then)

    async def _remembered(self, given: str) -> Caller | None:
        now = time.monotonic()
        known = self._callers.get(given)
        if known is not None and now < known[0]:
            return known[1]
        return await self._once.read(
            given,
            lambda: self._look_up(given),
            lambda caller: self._callers.put(given, (now + REMEMBER_S, caller)),
        )

    def _look_up(self, given: str) -> Caller | None:
        with self.database.reading() as session:
            row = session.scalars(select(TokenRow).where(TokenRow.hash == given)).one_or_none()
        if row is not None:
            return Caller(id=row.id, scopes=tuple(row.scopes))
        return None if given or self.exist() else Caller(id=ANYONE, scopes=SCOPES)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def allow(scope: str) -> Callable[[Request], Caller]:
    """Of a route: who asks must have this scope."""

    async def check(request: Request) -> Caller:  # async: others are run in a thread
        caller: Caller = request.state.caller
        if not caller.may(scope):
            raise Problem(403, f"this token may not {scope}", f"use a token of scope {scope}")
        return caller

    return check
