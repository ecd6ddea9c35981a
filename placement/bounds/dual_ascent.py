"""How a Lagrangian bound climbs: a schedule that a deadline hurries, and steps uphill of Adam (Kingma and Ba, 2015)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from placement.support.kernel import inlined_kernel

Floats = npt.NDArray[np.float64]

ADAM_TINY = 1e-12


class AscentStep(NamedTuple):
    """A step of a climb: its number from 0, how much of the schedule is behind, 0 to 1, and whether it is the last."""

    number: int
    progress: float
    last: bool

    def falling(self, first_last: tuple[float, float]) -> float:
        """What falls geometrically from the first of two values to the last, at this step."""
        first, last = first_last
        return float(first * (last / first) ** self.progress)


def climb(iterations: int, deadline: float | None, skipped: float = 0.0) -> Iterator[AscentStep]:
    """The steps up to a deadline, to whose end the schedule is hurried.

    Args:
        iterations: number of steps.
        deadline: `time.monotonic()` at which to stop; None: never.
        skipped: part of the schedule that counts as done at the first step.
    """
    began = time.monotonic()
    for number in range(iterations):
        progress = number / iterations
        if deadline is not None:
            now = time.monotonic()
            if now >= deadline:
                return
            progress = max(progress, (now - began) / (deadline - began))
        yield AscentStep(number, skipped + (1 - skipped) * progress, number == iterations - 1)


class Memory(NamedTuple):
    """Which shares of the means of gradients and of their squares Adam forgets at each step."""

    gradients: float
    squares: float

    def bias(self, step: int) -> float:
        """What makes up for means that started at 0, at step number `step` (from 0)."""
        return float(np.sqrt(1 - (1 - self.squares) ** (step + 1)) / (1 - (1 - self.gradients) ** (step + 1)))


LONG_MEMORY: Memory = Memory(0.1, 0.01)  # usual values, but a shorter memory for the squares
SHORT_MEMORY = Memory(0.5, 0.1)


class ClimbPlan(NamedTuple):
    """How a climb goes: first and last values, falling geometrically.

    stride            of the multipliers of sets
    soft_splits       smoothing of a set's splits, in nodes
    soft_eigenvalues  smoothing of eigenvalues, as a share of their spread
    """

    stride: tuple[float, float]
    soft_splits: tuple[float, float]
    soft_eigenvalues: tuple[float, float]
    memory: Memory


LONG: ClimbPlan = ClimbPlan((0.1, 0.002), (0.2, 0.002), (0.1, 0.001), LONG_MEMORY)
SHORT = ClimbPlan((0.1, 0.02), (0.05, 0.05), (0.1, 0.03), SHORT_MEMORY)  # of some ten steps
SHORT_CLIMB = 15


class Adam(NamedTuple):
    """Running means of the gradient and of its square."""

    first: Floats
    second: Floats
    memory: Memory

    @classmethod
    def like(cls, variable: Floats, memory: Memory = LONG_MEMORY) -> Adam:
        return cls(np.zeros_like(variable), np.zeros_like(variable), memory)

    def ascend(self, variable: Floats, gradient: Floats, stride: float) -> Floats:
        """The variable after a step uphill; `stride` includes the memory's bias."""
        self.first[...] += self.memory.gradients * (gradient - self.first)
        self.second[...] += self.memory.squares * (gradient * gradient - self.second)
        moved: Floats = variable + stride * self.first / (np.sqrt(self.second) + ADAM_TINY)
        return moved


@inlined_kernel
def ascended(
    first_UF: Floats, second_UF: Floats, memory: Memory, u: int, f: int, value: float, gradient: float, stride: float
) -> float:
    """As `Adam.ascend`, of one entry, for compiled code."""
    first = first_UF[u, f] + memory.gradients * (gradient - first_UF[u, f])
    second = second_UF[u, f] + memory.squares * (gradient * gradient - second_UF[u, f])
    first_UF[u, f], second_UF[u, f] = first, second
    return float(value + stride * first / (np.sqrt(second) + ADAM_TINY))
