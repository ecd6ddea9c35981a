"""One service for a folder with SQLite: a second would take the jobs that run in the first."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from placement.errors import OptionError, OutputError

NAME = "lock"
log = logging.getLogger("placement.service")


@contextmanager
def locked(data: Path) -> Iterator[None]:
    """The folder is this process's within the block, and until it ends.

    Raises:
        OptionError: Another service runs with this folder.
        OutputError: The folder cannot be written.
    """
    try:
        file = (data / NAME).open("a+")
    except OSError as error:
        raise OutputError(f"cannot write {data / NAME}: {error.strerror}; give a writable folder") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise OptionError(
                f"another service (process {file.read(20).strip() or 'unknown'}) runs with the folder {data}; end it, "
                f"give another --data, or let both share a PostgreSQL with --database-url"
            ) from None
        except OSError as error:  # a file system without locks
            log.warning("%s cannot be locked (%s): start no second service with it", data, error.strerror)
        else:
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
        yield
