"""Calls that take turns: while rows of one travel, another computes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

import torch

Result = TypeVar("Result")


class Turns:
    """Runs calls in threads of their own, of which one at a time goes on; the order is the same on every rank."""

    def __init__(self) -> None:
        self._mine = _Mine()
        self._threads: ThreadPoolExecutor | None = None
        self._size = 0

    @property
    def taken(self) -> bool:
        """Whether this thread runs one of several calls."""
        return self._mine.ring is not None

    def pass_on(self) -> None:
        """The other calls go on until it is this one's turn again."""
        if self._mine.ring is not None:
            self._mine.ring.pass_on(self._mine.place)

    def run(self, calls: Sequence[Callable[[], Result]], device: torch.device) -> list[Result]:
        """What the calls return, in order. Raises what the first of those raised that fail, once all are over."""
        ring, kept = _Ring(len(calls)), _Settings(device)
        if not calls:
            return []
        if self._threads is None or self._size < len(calls):
            self._threads, self._size = ThreadPoolExecutor(len(calls), "turns"), len(calls)  # kept: they have buffers

        def one(place: int) -> Result:
            with ExitStack() as stack:
                stack.callback(ring.end, place)
                ring.wait_for(place)
                kept.enter(stack)
                self._mine.ring, self._mine.place = ring, place
                stack.callback(setattr, self._mine, "ring", None)
                return calls[place]()

        answers = [self._threads.submit(one, place) for place in range(len(calls))]
        failed = [error for answer in answers if (error := answer.exception()) is not None]
        if failed:
            raise failed[0]
        return [answer.result() for answer in answers]


class _Ring:
    """Whose turn it is among those that are not over."""

    def __init__(self, size: int) -> None:
        self._changed = threading.Condition()
        self._left, self._size, self._turn = set(range(size)), size, 0

    def wait_for(self, place: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._turn == place)

    def pass_on(self, place: int) -> None:
        with self._changed:
            self._go_on_after(place)
            self._changed.wait_for(lambda: self._turn == place)

    def end(self, place: int) -> None:
        with self._changed:
            self._left.discard(place)
            self._go_on_after(place)

    def _go_on_after(self, place: int) -> None:
        following = [(place + step) % self._size for step in range(1, self._size + 1)]
        self._turn = next((one for one in following if one in self._left), self._turn)
        self._changed.notify_all()


class _Mine(threading.local):
    """The ring that this thread's call is in, and its place there."""

    ring: _Ring | None = None
    place = 0


class _Settings:
    """What torch keeps for each thread, as the thread has it that asks for the calls."""

    def __init__(self, device: torch.device) -> None:
        self._grad, self._inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def enter(self, stack: ExitStack) -> None:
        if self._stream is not None:
            stack.enter_context(torch.cuda.stream(self._stream))
        if self._inference:
            stack.enter_context(torch.inference_mode())
        else:
            stack.enter_context(torch.set_grad_enabled(self._grad))
