"""An alias, followed: something is done again whenever the alias moves, whatever the service does meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable

from placement.client.names import Names, Reference
from placement.errors import PlacementError

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0


def follow(
    names: Names,
    where: Reference,
    move: int | None,
    act: Callable[[], int | None],
    warn: Callable[[str], None],
    *,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Call `act` after every move of the alias later than `move`.

    Args:
        names: Of the service.
        where: An alias.
        move: The move that was acted on last; None: unknown, so that the first look acts.
        act: Does what is to be done, and returns the move that it acted on; None: it could not.
        warn: Gets what is wrong, once for each kind of trouble.
        stopped: Looked at after every answer; True ends the following.
    """
    pause, told = FIRST_PAUSE_S, ""
    while not stopped():
        try:
            latest = names.look(where).move if move is None else names.next_move(where, move).move
            if latest != move:
                move = act()
            trouble = "" if move is not None else "nothing could be done"
        except PlacementError as error:
            trouble = str(error)
        if not trouble:
            pause, told = FIRST_PAUSE_S, ""
            continue
        if trouble != told:
            warn(f"{trouble}; {where} is looked at again")
        told = trouble
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_S)
