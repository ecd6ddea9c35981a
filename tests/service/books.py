"""What became of the jobs, written by the database itself and read past the service."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg

ENDED = ("done", "failed", "cancelled")
TABLE = "CREATE TABLE changes (job TEXT, before TEXT, after TEXT)"
INSERT = "INSERT INTO changes VALUES (NEW.id, OLD.state, NEW.state);"
EVENT = "AFTER UPDATE ON jobs FOR EACH ROW WHEN (OLD.state <> NEW.state)"


class Books:
    """Of the database of a service; a trigger notes every change of a job's state."""

    def __init__(self, data: Path, url: str = "") -> None:
        self._data, self._url = data, url
        if not url:
            self._ask(TABLE)
            self._ask(f"CREATE TRIGGER note {EVENT} BEGIN {INSERT} END")
            return
        self._ask(f"DROP TABLE IF EXISTS changes; {TABLE}")
        body = f"$$ BEGIN {INSERT} RETURN NULL; END $$ LANGUAGE plpgsql"
        self._ask(f"CREATE OR REPLACE FUNCTION note() RETURNS trigger AS {body}")
        self._ask(f"CREATE OR REPLACE TRIGGER note {EVENT} EXECUTE FUNCTION note()")

    def states(self) -> list[str]:
        return [state for (state,) in self._ask("SELECT state FROM jobs ORDER BY created")]

    def attempts(self) -> dict[str, int]:
        return dict(self._ask("SELECT id, attempts FROM jobs"))  # type: ignore[arg-type]

    def hosts(self) -> dict[str, str]:
        """Of jobs that run, by the queue of PostgreSQL: the name of the host."""
        found = self._ask("SELECT workflow_uuid, executor_id FROM dbos.workflow_status WHERE status = 'PENDING'")
        return {job: host.rpartition("-")[0] for job, host in found}

    def endings(self) -> dict[str, list[str]]:
        """Of each job, every time that it ended, and what it was after it had ended."""
        found: dict[str, list[str]] = {}
        for job, before, after in self._ask("SELECT job, before, after FROM changes"):
            if before in ENDED or after in ENDED:
                found.setdefault(job, []).append(after)
        return found

    def files(self) -> list[str]:
        """Digests of all files that jobs made."""
        found = [files for (files,) in self._ask("SELECT files FROM jobs")]
        return sorted(digest for one in found for digest in (json.loads(one) if isinstance(one, str) else one).values())

    def _ask(self, statement: str) -> Sequence[Sequence[Any]]:
        if self._url:
            with psycopg.connect(self._url) as postgres:
                cursor = postgres.execute(statement.encode())
                return cursor.fetchall() if cursor.description else []
        sqlite = sqlite3.connect(self._data / "store.sqlite", timeout=30)
        try:
            with sqlite:
                return sqlite.execute(statement).fetchall()
        finally:
            sqlite.close()
