"""Workloads of several captures as one: each counts by its weight, however many tokens it has."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placement.core.model import Model
from placement.workload.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedWorkload:
    """Captures of one model, side by side.

    Attributes:
        parts: The workload of each capture.
        weight_W: Share of each in the traffic; sums to 1.
    """

    parts: tuple[Workload, ...]
    weight_W: tuple[float, ...]

    @property
    def model(self) -> Model:
        """That of the captures."""
        return self.parts[0].model

    @property
    def load_LE(self) -> npt.NDArray[np.float64]:
        """Share of the assignments that each expert gets in each layer, float64 [L, E]."""
        return np.asarray(
            np.sum([w * _shares(part) for w, part in zip(self.weight_W, self.parts, strict=True)], axis=0)
        )

    def digest(self) -> str:
        """Names the content of all captures and their weights: "sha256:..."."""
        lines = [f"{w!r} {part.digest()}" for w, part in zip(self.weight_W, self.parts, strict=True)]
        return f"sha256:{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()}"


def _shares(part: Workload) -> npt.NDArray[np.float64]:
    total_L1 = part.load_LE.sum(axis=1, keepdims=True)
    even_LE = np.full(part.load_LE.shape, 1 / part.model.num_experts)
    return np.asarray(np.divide(part.load_LE, total_L1, out=even_LE, where=total_L1 > 0))
