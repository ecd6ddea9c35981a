"""The tables. Times are seconds since 1970; ids are lower-case hexadecimal."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Float, Index, Integer, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

QUEUED, RUNNING, DONE, FAILED, CANCELLED = STATES = ("queued", "running", "done", "failed", "cancelled")
OPEN = (QUEUED, RUNNING)


class Base(DeclarativeBase):
    type_annotation_map = {dict[str, Any]: JSON, list[str]: JSON, int: BigInteger, float: Float}  # noqa: RUF012


class TraceRow(Base):
    """A trace or a file of counts. `id` is the digest of its content; `path` is where it lies.

    caller  id of the token that sent it first; empty of traces before version 0005 of the tables
    reader  of the recording that it was made of; empty of others, and of traces before version 0007
    """

    __tablename__ = "traces"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    source: Mapped[str] = mapped_column(String(16))
    path: Mapped[str]
    name: Mapped[str]
    num_bytes: Mapped[int]
    num_tokens: Mapped[int]
    num_requests: Mapped[int]
    num_layers: Mapped[int]
    num_experts: Mapped[int]
    top_k: Mapped[int]
    caller: Mapped[str] = mapped_column(String(64), default="")
    reader: Mapped[str] = mapped_column(String(40), default="")
    created: Mapped[float]
    used: Mapped[float]


class JobRow(Base):
    """A job and, where it is done, its answer: a placement has the id of the job that made it.

    digest         of the request; `active_digest` is the same until the job failed, was cancelled or deleted, so that
                   the same request twice is one job
    caller         id of the token that asked first; empty of jobs before version 0004 of the tables
    turn           jobs begin in this order, those of the same turn as they came
    files          name -> digest of the file in the blobs: placement, report, grouping, evaluation
    """

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    request: Mapped[dict[str, Any]]
    digest: Mapped[str] = mapped_column(String(64))
    active_digest: Mapped[str | None] = mapped_column(String(64), unique=True)
    caller: Mapped[str] = mapped_column(String(64), default="")
    turn: Mapped[int] = mapped_column(default=0)
    created: Mapped[float]
    started: Mapped[float | None]
    finished: Mapped[float | None]
    attempts: Mapped[int] = mapped_column(default=0)
    stage: Mapped[str] = mapped_column(String(16), default="")
    stage_started: Mapped[float | None]
    done: Mapped[int] = mapped_column(default=0)
    total: Mapped[int] = mapped_column(default=0)
    best: Mapped[float | None]
    cancel: Mapped[bool] = mapped_column(default=False)
    error: Mapped[dict[str, Any] | None]
    files: Mapped[dict[str, Any]] = mapped_column(default=dict)
    summary: Mapped[dict[str, Any]] = mapped_column(default=dict)

    __table_args__ = (Index("jobs_by_state", "state", "created"),)


class KeyRow(Base):
    """An `Idempotency-Key` of a caller and the job that it got."""

    __tablename__ = "idempotency_keys"

    caller: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))
    job: Mapped[str] = mapped_column(String(64))
    created: Mapped[float]


class TokenRow(Base):
    """A bearer token: only its hash is kept. `scopes` are words.

    expires, used          when it ends (null: never), and when it was used last, to the minute
    old_hash, old_expires  of the token that it replaced, and until when that one is valid too
    """

    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str]
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[str]]
    created: Mapped[float]
    expires: Mapped[float | None]
    used: Mapped[float | None]
    old_hash: Mapped[str | None] = mapped_column(String(64), index=False)
    old_expires: Mapped[float | None]

    __table_args__ = (Index("tokens_by_old_hash", "old_hash"),)


class HostRow(Base):
    """A process that runs jobs. It changes `seen` every few seconds; `name` stays the same when its host comes back."""

    __tablename__ = "hosts"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str]
    seen: Mapped[float]


class VersionRow(Base):
    """A placement under a name: versions count from 1, and never change.

    digest, grouping  of its files in the blobs; null: solved without homes
    shape             what all versions of a name have in common: model, cluster and engine
    placement         id of the job that made it; empty of a file that was sent
    """

    __tablename__ = "versions"

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))
    grouping: Mapped[str | None] = mapped_column(String(64))
    shape: Mapped[dict[str, Any]]
    placement: Mapped[str] = mapped_column(String(64), default="")
    note: Mapped[str] = mapped_column(default="")
    caller: Mapped[str] = mapped_column(String(64))
    created: Mapped[float]


class MoveRow(Base):
    """An alias was pointed at a version, pointed back or removed: the last move of an alias says where it points.

    before  version that the alias had; null: the alias is new
    held    versions that the alias has by promotion, the last one now: a rollback takes the last one off. Of an alias
            that was removed there is none
    """

    __tablename__ = "moves"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(String(200))
    alias: Mapped[str] = mapped_column(String(60))
    serial: Mapped[int]
    kind: Mapped[str] = mapped_column(String(16))
    before: Mapped[int | None]
    held: Mapped[list[int]] = mapped_column(JSON)
    note: Mapped[str] = mapped_column(default="")
    caller: Mapped[str] = mapped_column(String(64))
    moved: Mapped[float]

    __table_args__ = (UniqueConstraint("name", "alias", "serial", name="moves_in_order"),)
