"""What a client may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of the proxy.

    Attributes:
        body_bytes: Largest body of a request.
        requests: Requests at a time; more are refused with 503.
        head_s: Seconds in which the head of a request has to come, from the first moment or the last answer.
        stall_s: Seconds for which a body may stay away.
        drain_s: Seconds that answers may still take when the proxy is told to end.
    """

    body_bytes: int = 64 << 20
    requests: int = 4096
    head_s: float = 60.0
    stall_s: float = 30.0
    drain_s: float = 300.0
