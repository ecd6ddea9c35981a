"""The database: opened, brought up to date, and asked in short transactions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import alembic.command
from alembic.config import Config
from sqlalchemy import Connection, Engine, ExceptionContext, create_engine, event, select, text
from sqlalchemy.exc import DatabaseError, InterfaceError, OperationalError, TimeoutError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from placement_api.store.tables import Base

MIGRATIONS = Path(__file__).parent / "migrations"
AWAY = (OperationalError, InterfaceError, TimeoutError)  # gone, full or overrun: it may answer later
UPGRADE_LOCK = 0x706C6163  # of PostgreSQL: hosts that start together upgrade one after the other


class Database:
    """Many threads may use it; every `session()` is one transaction that is on disk when it ends."""

    def __init__(self, url: str) -> None:
        self.engine = open_engine(url)
        self._looking = open_engine(url, looking=True)

    def upgrade(self) -> None:
        """Create the tables, or bring those of an earlier version up to date."""
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        with self.engine.begin() as connection:
            self._lock(connection)
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, "head")

    @contextmanager
    def session(self) -> Iterator[Session]:
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that writes nothing, and so waits for no writer."""
        with Session(self.engine.execution_options(writes=False), expire_on_commit=False) as session:
            yield session

    def check(self, *, whole: bool) -> None:
        """Read of every table, past what connections remember; `whole` also checks every page of a SQLite file.

        Raises SQLAlchemyError.
        """
        with self._looking.connect() as connection:
            for table in Base.metadata.sorted_tables:
                connection.execute(select(table).limit(1)).all()
            if whole and connection.dialect.name == "sqlite":
                found = connection.execute(text("PRAGMA quick_check(1)")).scalar_one()
                if found != "ok":
                    raise DatabaseError("PRAGMA quick_check", None, Exception(" ".join(found.split())[:200]))

    def close(self) -> None:
        self.engine.dispose()
        self._looking.dispose()

    def _lock(self, connection: Connection) -> None:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": UPGRADE_LOCK})


@event.listens_for(Engine, "handle_error")
def on_error(context: ExceptionContext) -> None:
    """No connection at all is a lost one too: DBOS then waits for it, and gives no job up."""
    if context.connection is None and isinstance(context.sqlalchemy_exception, OperationalError):
        context.is_disconnect = True


def open_engine(url: str, *, looking: bool = False) -> Engine:
    """`looking`: for whoever wants to know whether the database answers, with one connection, or a new one each time.

    A connection to SQLite remembers pages: what was damaged since does not show in them.
    """
    if not url.startswith("sqlite"):
        most = (1, 0) if looking else (10, 20)
        return create_engine(url, pool_size=most[0], max_overflow=most[1], pool_pre_ping=True)
    engine = create_engine(url, poolclass=NullPool) if looking else create_engine(url, pool_size=10, max_overflow=40)

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin below, not in sqlite3
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        # a reader that turns writer could not wait for another writer: take the lock when the transaction begins
        immediate = connection.get_execution_options().get("writes", True)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine.execution_options(writes=False) if looking else engine


def quick_commits(url: str) -> None:
    """Have whoever opens a SQLite file write it ahead: as safe as a journal, with one sync instead of several."""
    if url.startswith("sqlite"):
        engine = create_engine(url)
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        engine.dispose()
