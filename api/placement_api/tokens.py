"""Bearer tokens: who asks, and what they may. Only hashes are kept: a token is 256 random bits, shown once."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi import Request
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from starlette.concurrency import run_in_threadpool

from placement.errors import OptionError
from placement_api.problems import Problem
from placement_api.store.database import Database
from placement_api.store.tables import TokenRow

SCOPES = ("read", "solve", "admin")  # each also allows what stands before it
PREFIX = "plc_"
LEAST_LETTERS = 32  # of a token that was made elsewhere
COOKIE = "placement_token"  # of the page, set by /login
REMEMBER_S = 5.0  # a token that was deleted elsewhere works for so long
MOST_REMEMBERED = 10_000
ANYONE = "anyone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    id: str
    scopes: tuple[str, ...]

    def may(self, scope: str) -> bool:
        return any(SCOPES.index(own) >= SCOPES.index(scope) for own in self.scopes)


@dataclass(slots=True, kw_only=True)
class Tokens:
    """`caller` and `spend` belong to the event loop, the others to any thread."""

    database: Database
    requests_per_s: float
    _callers: dict[str, tuple[float, Caller | None]] = field(default_factory=dict)
    _buckets: dict[str, tuple[float, float]] = field(default_factory=dict)

    def create(self, name: str, scopes: list[str]) -> str:
        """A new token, which nobody can find out later. Raises OptionError."""
        token = PREFIX + secrets.token_urlsafe(32)
        self._add(name, scopes, token)
        return token

    def admit(self, name: str, scopes: list[str], token: str) -> None:
        """Make a token known that was made elsewhere; if it is known, nothing happens. Raises OptionError."""
        if len(token) < LEAST_LETTERS or not token.isascii() or not token.isprintable() or " " in token:
            raise OptionError(
                f"the token has {len(token)} letters, or others than may be in a header; give {LEAST_LETTERS} random "
                f"ones or more, as openssl rand -hex 32 prints"
            )
        with contextlib.suppress(IntegrityError):
            self._add(name, scopes, token)

    def _add(self, name: str, scopes: list[str], token: str) -> None:
        unknown = [scope for scope in scopes if scope not in SCOPES]
        if unknown or not scopes:
            raise OptionError(f"scope {', '.join(unknown) or 'none'} is unknown; choose of {', '.join(SCOPES)}")
        row = TokenRow(
            id=secrets.token_hex(8), name=name[:200], hash=_hash(token), scopes=list(scopes), created=time.time()
        )
        with self.database.session() as session:
            session.add(row)

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

    async def _remembered(self, given: str) -> Caller | None:
        now = time.monotonic()
        until, caller = self._callers.get(given, (0.0, None))
        if now < until:
            return caller
        caller = await run_in_threadpool(self._look_up, given)
        if len(self._callers) >= MOST_REMEMBERED:
            self._callers.clear()
        if caller is not None:
            self._callers[given] = (now + REMEMBER_S, caller)
        return caller

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

    def check(request: Request) -> Caller:
        caller: Caller = request.state.caller
        if not caller.may(scope):
            raise Problem(403, f"this token may not {scope}", f"use a token of scope {scope}")
        return caller

    return check
