"""A process that nobody waits for any more ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

LOOK_S = 0.2


@contextmanager
def ends_with_parent() -> Iterator[None]:
    """End this process as soon as the one that started it is gone, while this goes on; no thread is left after it."""
    parent, over = os.getppid(), threading.Event()

    def look() -> None:
        while not over.wait(LOOK_S):
            if os.getppid() != parent:
                os._exit(1)

    looking = threading.Thread(target=look, name="orphans", daemon=True)
    looking.start()
    try:
        yield
    finally:
        over.set()
        looking.join()
