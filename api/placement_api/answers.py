"""What answers say."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from placement_api.store.tables import DONE, OPEN, JobRow, TraceRow

ANSWERS = {  # of a job, by its kind: the file that is the answer
    "solve": "placement",
    "evaluate": "evaluation",
    "advise": "advice",
    "study": "study",
    "front": "front",
}


class Converted(BaseModel):
    """How a recording of an engine became a trace or counts."""

    reader: str = Field(examples=["vllm"])
    reason: str = Field(description="Why it was taken for that")
    notes: list[str] = Field(description="What was left out or assumed")


class TraceAnswer(BaseModel):
    id: str = Field(description="Digest of the content: the same trace always has the same id")
    kind: str = Field(description="trace, or counts: enough for balance alone", examples=["trace"])
    source: str = Field(description="upload, or path: it stays where it is", examples=["upload"])
    name: str = Field(description="Name of the model")
    num_bytes: int
    num_tokens: int
    num_requests: int
    num_layers: int
    num_experts: int
    top_k: int
    created: float = Field(description="Seconds since 1970")

    converted: Converted | None = Field(
        default=None, description="Of a recording that was just sent: how it was read; else null"
    )

    notes: list[str] = Field(
        default_factory=list,
        description="Of an archive or folder that was just sent: how many of its files hold no traffic, and which",
        examples=[["left out 1 file that holds no traffic: README.md"]],
    )

    @property
    def all_notes(self) -> list[str]:
        """What was left out or assumed, of the archive and of the recording."""
        return [*self.notes, *(self.converted.notes if self.converted else [])]

    @staticmethod
    def of(row: TraceRow, converted: dict[str, Any] | None = None, notes: Sequence[str] = ()) -> TraceAnswer:
        told = {name: getattr(row, name) for name in TraceAnswer.model_fields if name not in ("converted", "notes")}
        read = None if converted is None else Converted(**converted)
        return TraceAnswer(**told, converted=read, notes=list(notes))


class Progress(BaseModel):
    stage: str = Field(
        description="count, compile, solve, robust, group, evaluate or advise; empty before the first",
        examples=["solve"],
    )
    done: int = Field(
        description="Tokens (count), layers (solve), maps (advise), pieces (compile), passes (evaluate) or rounds"
    )
    total: int
    best: float | None = Field(
        description="Objective of the best maps so far, mean over the layers that are solved; null: none is",
        examples=[1.37],
    )
    left_s: float | None = Field(description="Seconds until the stage ends at the pace so far; null: unknown")


class JobAnswer(BaseModel):
    id: str
    kind: str = Field(description=f"One of {', '.join(ANSWERS)}", examples=["solve"])
    state: str = Field(description="queued, running, done, failed or cancelled", examples=["running"])
    progress: Progress
    created: float
    started: float | None
    finished: float | None
    error: dict[str, Any] | None = Field(description="Why it failed, as problem+json")
    traces: list[str] = Field(description="Ids of what it reads")
    result: str | None = Field(description="Where the answer is, once it is done", examples=["/v1/placements/5f0a"])

    @staticmethod
    def of(row: JobRow) -> JobAnswer:
        where = f"/v1/placements/{row.id}" if row.kind == "solve" else f"/v1/jobs/{row.id}/{ANSWERS[row.kind]}"
        return JobAnswer(
            id=row.id,
            kind=row.kind,
            state=row.state,
            progress=Progress(stage=row.stage, done=row.done, total=row.total, best=row.best, left_s=_left_s(row)),
            created=row.created,
            started=row.started,
            finished=row.finished,
            error=row.error,
            traces=row.request["traces"],
            result=where if row.state == DONE else None,
        )


class PlacementAnswer(BaseModel):
    """A placement in a list; `GET /v1/placements/{id}` answers the placement itself."""

    id: str
    created: float
    summary: dict[str, Any] = Field(description="Model, cluster, and what each map costs")
    files: list[str] = Field(description="What there is of it: placement, figures (of the page), report, grouping")

    @staticmethod
    def of(row: JobRow) -> PlacementAnswer:
        return PlacementAnswer(id=row.id, created=row.created, summary=row.summary, files=sorted(row.files))


class VersionAnswer(BaseModel):
    """A version: where its files are, and whether they arrived whole."""

    name: str
    version: int
    sha256: str = Field(description="Of the placement file")
    grouping_sha256: str | None = Field(description="Of the file of homes; null: solved without")
    shape: dict[str, Any] = Field(description="What all versions of the name have in common")
    placement: str | None = Field(description="Id of the placement, if this service made it")
    note: str
    by: str = Field(description="Name of the token that published it")
    created: float = Field(description="Seconds since 1970")


class MoveAnswer(BaseModel):
    """What happened to an alias."""

    move: int = Field(description="Counts up: a later move of any alias has a larger number")
    alias: str
    kind: Literal["promoted", "rolled back", "removed"]
    before: int | None = Field(description="Version that the alias had; null: none")
    version: int | None = Field(description="Version that the alias got; null: it was removed")
    note: str
    by: str
    moved: float = Field(description="Seconds since 1970")


class HeldAnswer(VersionAnswer):
    """The version that an alias or a number names."""

    move: int | None = Field(description="Last move of the alias; null: the version was asked for by its number")
    moved: float | None


class NameAnswer(BaseModel):
    name: str
    latest: int = Field(description="Latest version")
    aliases: dict[str, int] = Field(description="The version of each alias")


class NameDetail(NameAnswer):
    versions: list[VersionAnswer] = Field(description="Newest first")
    history: list[MoveAnswer] = Field(description="Newest first")


def _left_s(row: JobRow) -> float | None:
    if row.state not in OPEN or row.stage_started is None or not 0 < row.done < row.total:
        return None
    elapsed_s = max(time.time() - row.stage_started, 0.0)  # clocks are set back, and hosts have clocks of their own
    return round(elapsed_s * (row.total - row.done) / row.done, 1)
