"""How often the queue is looked at: often while there is work, seldom while there is none."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Protocol

BUSY_S = 0.1
IDLE_S = 0.5  # a look costs some milliseconds; the first job after a pause waits for half of this, as a mean
SWEEPS = 2  # without any job, after which there is none to be expected


class Queue(Protocol):
    """Of DBOS, in the database: all hosts that share it look as often as it says."""

    def set_polling_interval_sec(self, value: float) -> None:
        """From the next look on."""


@dataclass(slots=True, kw_only=True)
class Pace:
    """Hosts that share a queue follow the same rule, so they write the same.

    queue  what is listened to, once it is
    """

    queue: Queue | None = None
    _idle: bool = False
    _empty: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def work_came(self) -> None:
        """A job was put into the queue here."""
        with self._lock:
            self._empty = 0
            if self._idle and self.queue is not None:
                self.queue.set_polling_interval_sec(BUSY_S)
                self._idle = False

    def swept(self, *, jobs: bool) -> None:
        """All jobs were looked at: whether any is open."""
        if jobs:
            self.work_came()
            return
        with self._lock:
            self._empty += 1
            if self._empty == SWEEPS and self.queue is not None:
                self.queue.set_polling_interval_sec(IDLE_S)
                self._idle = True
