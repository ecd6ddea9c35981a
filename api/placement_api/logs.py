"""What the service logs: sentences, and a line of JSON for each request that changes something or is refused."""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime
from typing import Any

from placement.errors import printable

AUDIT, ACCESS = logging.getLogger("placement.audit"), logging.getLogger("placement.access")
LONGEST_PATH = 300


def start_logs(*, access: bool = False) -> None:
    """Write logs to standard error; of requests that only read, where `access` asks for that."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it has a line for every request that is no HTTP
    lines = logging.StreamHandler()
    lines.setFormatter(logging.Formatter("%(message)s"))
    for logger in (AUDIT, ACCESS):
        logger.handlers, logger.propagate = [lines], False
    ACCESS.setLevel(logging.INFO if access else logging.WARNING)


def line_of(log: str, seconds: float, path: str, **said: Any) -> str:
    """A line of JSON: when, how long it took, and what is given, without what is None.

    Neither headers, bodies nor queries are in it, so no secret is.
    """
    when = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
    told = {name: value for name, value in said.items() if value is not None}
    line = {"time": when, "log": log, "path": printable(path[:LONGEST_PATH]), "seconds": round(seconds, 4), **told}
    return json.dumps(line, ensure_ascii=True)
