"""Whose job is next: tokens take turns, however many jobs each of them has queued."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from placement_api.problems import Problem
from placement_api.store.tables import OPEN, QUEUED, RUNNING, JobRow, TokenRow

ASK_AGAIN_S = 10


def check_room(session: Session, caller: str, max_queued: int) -> None:
    """Raise Problem (429) where as many jobs of the caller wait as may."""
    session.get(TokenRow, caller, with_for_update=True)  # requests of one token are counted one after the other
    waiting = select(func.count()).where(JobRow.caller == caller, JobRow.state == QUEUED)
    if (session.scalar(waiting) or 0) >= max_queued:
        raise Problem(
            429,
            f"{max_queued} jobs of this token are queued, and more may not wait",
            "wait until some have begun, or cancel some; whoever runs the service may raise --max-queued",
            Retry_After=str(ASK_AGAIN_S),
        )


def waiting_before(session: Session, job: JobRow) -> int:
    """How many of the jobs that wait begin before this one does, unless others come or are cancelled."""
    earlier = (JobRow.turn < job.turn) | ((JobRow.turn == job.turn) & (JobRow.created < job.created))
    return session.scalar(select(func.count()).where(JobRow.state == QUEUED, earlier)) or 0


def next_turn(session: Session, caller: str) -> int:
    """The turn of a new job of a caller.

    A job comes one turn after the caller's last that is open, and not before the head of the queue: so callers
    alternate, and a job that is the head is overtaken by none that comes later. Where no job waits, the turn of what
    runs takes the head's place.
    """
    head = session.scalar(select(func.min(JobRow.turn)).where(JobRow.state == QUEUED))
    if head is None:
        head = session.scalar(select(func.max(JobRow.turn)).where(JobRow.state == RUNNING))
    last = session.scalar(select(func.max(JobRow.turn)).where(JobRow.caller == caller, JobRow.state.in_(OPEN)))
    return max(head or 1, (last or 0) + 1)
