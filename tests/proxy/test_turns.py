"""Requests that came together are decided one after another, and what was written leaves in between."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from placement_api.proxy.turns import Turns


def test_what_was_ready_runs_between_two_decisions() -> None:
    """Three ask in the same turn of the loop: they are served in order, and the loop turns between them."""
    seen: list[str] = []

    async def tick(turn: int) -> None:
        for _ in range(turn):
            seen.append("loop")
            await asyncio.sleep(0)

    async def ask(turns: Turns, name: str) -> None:
        await turns.next()
        seen.append(name)

    async def run() -> None:
        turns = Turns()
        await asyncio.gather(*(ask(turns, name) for name in "abc"), tick(12))
        seen.append("|")
        await ask(turns, "d")

    asyncio.run(run())
    assert [one for one in seen if one != "loop"] == ["a", "b", "c", "|", "d"]
    at = [seen.index(name) for name in "abc"]
    assert all("loop" in seen[first:second] for first, second in pairwise(at))


def test_who_goes_away_holds_up_nobody() -> None:
    """A request that ends while it waits, or as its turn comes, leaves the turn to the next one."""

    async def run(turns_of_the_loop: int) -> list[str]:
        turns, seen = Turns(), []

        async def ask(name: str) -> None:
            await turns.next()
            seen.append(name)

        first, gone, last = (asyncio.create_task(ask(name)) for name in ("first", "gone", "last"))
        for _ in range(turns_of_the_loop):
            await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait_for(asyncio.gather(first, gone, last, return_exceptions=True), 5)
        return seen

    found = [asyncio.run(run(count)) for count in range(1, 5)]
    assert all(seen[0] == "first" and seen[-1] == "last" for seen in found)
    assert ["first", "last"] in found
