"""A rank that is killed is named by all others, though they leave one after another, and the store with rank 0."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from moe import make_placement, make_tokens, torch
from processes import run_processes

from placement.errors import RankError
from placement.runtime import Dispatcher, LayerMap, torch_mesh
from placement.runtime.transport.roll_call import RollCall, plain

TIMEOUT_S = 5.0
PLACEMENT, TOKENS = make_placement(2, 2, 4, 12, 3), make_tokens([5] * 4, 12, 3)


def dying(killed: int, hops: str, seed: int) -> Callable[[int], Any]:
    """Layers until a rank is killed between two exchanges; ranks are up to a fifth of a second apart."""

    def program(rank: int) -> tuple[tuple[int, ...], str, float]:
        mesh, mine = torch_mesh(2, 2, timeout_s=TIMEOUT_S), TOKENS[rank]
        torch.distributed.barrier()
        dispatcher, rng = Dispatcher(mesh, LayerMap.of(PLACEMENT, 0), hops=hops), random.Random(seed * 4 + rank)
        for step in range(100):
            time.sleep(rng.random() / 5)
            start = time.monotonic()
            try:
                rows, _, handle = dispatcher.dispatch(mine.x, mine.ids, mine.weights)
                if rank == killed and step == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                dispatcher.combine(rows, handle)
            except RankError as error:
                return error.ranks, str(error), time.monotonic() - start
        raise AssertionError("nobody died")

    return program


@pytest.mark.parametrize(("killed", "hops"), [(2, "flat"), (3, "hierarchical"), (1, "hierarchical"), (0, "flat")])
def test_the_killed_rank_is_named(killed: int, hops: str, tmp_path: Path) -> None:
    """By every survivor, in one line, in time."""
    results = run_processes(4, tmp_path, dying(killed, hops, int(os.environ.get("SEED", killed))), leave=True)
    for rank, result in enumerate(results):
        if rank == killed:
            assert result is None
            continue
        assert isinstance(result, tuple), result
        ranks, message, took = result
        assert ranks == (killed,), (rank, message)
        assert "\n" not in message
        assert "CapturedTraceback" not in message
        assert ".cc" not in message
        assert took < 1.5 * TIMEOUT_S


class GoneStore:
    """A store that ends after so many questions."""

    def __init__(self, signed: set[str], questions: int) -> None:
        self.signed, self.left = signed, questions

    def check(self, keys: list[str]) -> bool:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError(
                "recvValue failed. Exception raised from recvBytes at /pytorch/torch/Utils.hpp:681\n#0 x"
            )
        return keys[0].partition("/")[2].partition("/")[2] in self.signed

    def set(self, key: str, value: str) -> None: ...


def test_a_store_that_leaves_is_not_blamed() -> None:
    """Rank 0 had signed before its store went, so it has left as the one that was missing made it do."""
    signed = {"here/0", "here/1"}
    error = RollCall(GoneStore(signed, 7), 1, 4, 0, 5.0).error((0, 1, 2), "closed")
    assert error.ranks == (2,)
    assert str(error) == "rank 2 died or did not come to an exchange in time (closed)"
    error = RollCall(GoneStore(set(), 7), 1, 4, 0, 5.0).error((0, 1, 2), "closed")
    assert error.ranks == (0,)
    assert str(error).endswith("the store of rank 0 cannot be asked, it has died: recvValue failed.")


def test_words_of_torch() -> None:
    """The place in the source and the stack are left out."""
    said = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:3871"
    assert plain(said) == "Connection closed by peer [127.0.0.1]:3871"
    said = "Broken pipe\nException raised from sendBytes at x.hpp:1\nC++ CapturedTraceback:\n#4 f"
    assert plain(said) == "Broken pipe"
