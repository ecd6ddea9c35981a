"""What a rank computes while rows travel, so that the time of the way is not lost."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from placement.runtime.transport.base import Group

Meanwhile = Callable[[], None]


def exchange_while(
    group: Group,
    send: Tensor,
    out: Tensor,
    send_rows: list[int] | None = None,
    recv_rows: list[int] | None = None,
    *,
    meanwhile: Meanwhile | None,
) -> Tensor:
    """`out` with the rows that came, as `Group.all_to_all`; `meanwhile` runs between the start and the wait."""
    if meanwhile is None:
        return group.all_to_all(send, send_rows, recv_rows, out)
    arrive = group.start(send, out, send_rows, recv_rows)
    try:
        meanwhile()
    finally:
        arrive()  # or the next exchange would write to rows that are under way
    return out
