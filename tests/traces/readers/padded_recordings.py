"""Recordings of routed sets, converted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.readers.base import ReadOptions
from placement.readers.convert import Conversion, convert
from placement.traces.trace import open_trace
from placement.workload.count import count

Array = npt.NDArray[Any]


def routed(seed: int, *shape: int, experts: int = 16, top_k: int = 4) -> Array:
    """Random top-k sets [tokens, layers, K], some experts far more popular than others."""
    rng = np.random.default_rng(seed)
    popularity = np.random.default_rng(seed + 1).normal(0, 1, (shape[1], experts))
    return np.argsort(-(popularity + rng.gumbel(size=(*shape, experts))), axis=-1)[..., :top_k]


def converted(folder: Path, requests: dict[str, Array], dtype: Any = np.int32, **options: Any) -> Conversion:
    """Convert one `.npy` for each request [T, L, K]."""
    source = folder / "in"
    source.mkdir()
    for name, ids in requests.items():
        np.save(source / f"{name}.npy", ids.astype(dtype))
    return convert(source, folder / "out", reader="arrays", options=ReadOptions(**options))


def sets_of(folder: Path) -> list[list[set[int]]]:
    """The sets of every token by layer, in order."""
    trace = open_trace(folder / "out")
    count(trace)  # its ids are sound
    layers = range(trace.model.num_layers)
    tokens = [np.stack([block.ids_TK(layer) for layer in layers], axis=1) for block in trace.blocks()]
    return [[set(row[row >= 0].tolist()) for row in one] for one in np.concatenate(tokens).astype(int)]


def as_sets(ids: Array) -> list[list[set[int]]]:
    return [[set(row[row >= 0].tolist()) for row in one] for one in ids.astype(int)]


def notes(done: Conversion) -> str:
    return "; ".join(done.notes)
