"""A process that nobody waits for any more ends."""

from __future__ import annotations

import os
import threading

LOOK_S = 0.2


class ParentWatch:
    """Ends this process as soon as the one that started it is gone, from `start` to `stop`."""

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="orphans", daemon=True)

    def start(self) -> ParentWatch:
        self._thread.start()
        return self

    def stop(self) -> None:
        """No thread is left: it would be missing in what is forked, with whatever it had locked."""
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(LOOK_S):
            if os.getppid() != self._parent:
                os._exit(1)
