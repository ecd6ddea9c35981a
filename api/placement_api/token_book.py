"""The tokens that there are. Only hashes are kept: a token is 256 random bits, shown once."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import time
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from placement.errors import OptionError
from placement_api.store.database import Database
from placement_api.store.tables import TokenRow

SCOPES = ("metrics", "read", "solve", "promote", "admin")  # each also allows what stands before it
PREFIX = "plc_"
LEAST_LETTERS = 32  # of a token that was made elsewhere
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBook:
    """Any thread may use it, beside a service that runs."""

    database: Database

    def create(self, name: str, scopes: list[str], days: float | None = None) -> str:
        """A new token, which nobody can find out later; valid for so many days, or for ever. Raises OptionError."""
        token = PREFIX + secrets.token_urlsafe(32)
        self._add(name, scopes, token, days)
        return token

    def admit(self, name: str, scopes: list[str], token: str, days: float | None = None) -> None:
        """Make a token known that was made elsewhere; if it is known, nothing happens. Raises OptionError."""
        if len(token) < LEAST_LETTERS or not token.isascii() or not token.isprintable() or " " in token:
            raise OptionError(
                f"the token is too short ({len(token)} letters), or has letters that no header takes; give "
                f"{LEAST_LETTERS} random ones or more, as openssl rand -hex 32 prints"
            )
        with contextlib.suppress(IntegrityError):
            self._add(name, scopes, token, days)

    def replace(self, name: str, overlap_s: float) -> str:
        """A new token in place of another, which is valid for `overlap_s` more; its owner, scopes and end stay.

        Args:
            name: The name or the id.
            overlap_s: 0 revokes the old token now.

        Raises:
            OptionError: There is no such token, or more than one.
        """
        if not 0 <= overlap_s < float("inf"):
            raise OptionError(f"overlap={overlap_s} is not allowed; give 0 seconds or more")
        token = PREFIX + secrets.token_urlsafe(32)
        with self.database.session() as session:
            found = self._named(session, name)
            if len(found) != 1:
                what = (
                    f"{len(found)} tokens are called {name!r}; give an id" if found else f"there is no token {name!r}"
                )
                raise OptionError(f"{what}: see placement token list")
            found[0].old_hash, found[0].old_expires = found[0].hash, time.time() + overlap_s
            found[0].hash = hash_of(token)
        return token

    def rows(self) -> list[TokenRow]:
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
            gone = self._named(session, name)
            others = [row for row in session.scalars(select(TokenRow)) if row not in gone]
            if gone and not others and not force:
                raise OptionError(
                    f"{name!r} is the last token, and without one a service that others can reach answers nobody; "
                    f"make another with placement token create first, or give --force"
                )
            for row in gone:
                session.delete(row)
            return len(gone)

    def _named(self, session: Session, name: str) -> list[TokenRow]:
        """The tokens of a name or id, held against others who would change them; all are, so that one of two waits."""
        rows = session.scalars(select(TokenRow).order_by(TokenRow.id).with_for_update()).all()
        return [row for row in rows if name in (row.name, row.id)]

    def _add(self, name: str, scopes: list[str], token: str, days: float | None) -> None:
        unknown = [scope for scope in scopes if scope not in SCOPES]
        if unknown or not scopes:
            raise OptionError(f"scope {', '.join(unknown) or 'none'} is unknown; choose of {', '.join(SCOPES)}")
        if not name.strip() or len(name) > 200 or not name.isprintable():
            raise OptionError(f"the name {name[:60]!r} is no name of a token; give 1 to 200 printable letters")
        if days is not None and not 0 < days < 100_000:
            raise OptionError(f"days={days:g} is not allowed; give more than 0 and less than 100000")
        now = time.time()
        row = TokenRow(
            id=secrets.token_hex(8),
            name=name,
            hash=hash_of(token),
            scopes=list(scopes),
            created=now,
            expires=None if days is None else now + days * DAY_S,
        )
        with self.database.session() as session:
            session.add(row)


def hash_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
