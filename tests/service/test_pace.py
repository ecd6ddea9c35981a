"""An idle service leaves the processor alone, and begins the next job soon all the same."""

from __future__ import annotations

from placement_api.jobs.pace import BUSY_S, IDLE_S, SWEEPS, Pace


class Queue:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[float] = []

    def set_polling_interval_sec(self, value: float) -> None:
        self.told.append(value)


def test_the_queue_is_looked_at_seldom_where_no_job_is() -> None:
    """Only after some sweeps without any; often again from the first job on; the database is told of changes alone."""
    queue = Queue()
    pace = Pace(queue=queue)
    pace.work_came()
    for _ in range(SWEEPS - 1):
        pace.swept(jobs=False)
    pace.swept(jobs=True)
    for _ in range(SWEEPS - 1):
        pace.swept(jobs=False)
    assert queue.told == []
    for _ in range(3):
        pace.swept(jobs=False)
    assert queue.told == [IDLE_S]
    pace.work_came()
    pace.swept(jobs=True)
    assert queue.told == [IDLE_S, BUSY_S]
    for _ in range(SWEEPS):
        pace.swept(jobs=False)
    pace.swept(jobs=True)  # another host has put a job into the queue
    assert queue.told == [IDLE_S, BUSY_S, IDLE_S, BUSY_S]


def test_a_queue_that_is_not_listened_to_yet_is_told_nothing() -> None:
    """Jobs are put into it before the service starts to listen."""
    pace = Pace()
    pace.work_came()
    for _ in range(SWEEPS):
        pace.swept(jobs=False)
    assert pace.queue is None
