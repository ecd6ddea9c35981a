"""Counts without tokens: how often each expert was visited, in all or by each request. Enough for balance.

A `.npy` array, or a `.npz` with the array `counts` (or `frac`, shares of a request's assignments): [L, E], or
[Q, L, E] by request. A `.npz` may also name `layer_ids` [L], `top_k`, `num_hidden_layers` and `model`. Rows that are 0
in all requests are dense layers' and are left out. Pickled objects are refused.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.model import Model
from placement.errors import InputError, OptionError, TraceError
from placement.support.array_files import read_arrays
from placement.support.atomic_files import write_atomic
from placement.support.memory import check_fits_memory
from placement.traces.format import id_dtype
from placement.traces.split import draw, request_keys
from placement.workload.workload import PROFILE_REQUESTS, SAMPLE_TOKENS, Workload, pairs_bytes

SUFFIXES = (".npy", ".npz")
KEYS = ("counts", "frac")
LARGEST = 1 << 32  # of one request's count; sums of many stay below 2^63
SMALLEST = 1e-30  # of the largest fraction
FINEST = 1 << 24  # to which the largest fraction is scaled


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertCounts:
    """Assignments of every expert by request, and nothing on which experts a token visits together.

    count_QLE  int64 [Q, L, E]
    unit       what 1 of it is in assignments: less than 1 where fractions were read
    selected   which requests these are of those in the file, int64 [Q]
    left_out   layers in which nothing was counted: dense ones
    """

    model: Model
    count_QLE: npt.NDArray[np.int64]
    unit: float
    selected: npt.NDArray[np.int64]
    left_out: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens that make so many assignments, rounded."""
        return round(float(self.load_LE().sum(axis=1).max()) * self.unit / self.model.top_k)

    def load_LE(self) -> npt.NDArray[np.int64]:
        return np.asarray(self.count_QLE.sum(axis=0))

    def split(self, share: float, seed: int) -> tuple[ExpertCounts, ExpertCounts | None]:
        """(rest, part): `part` has about `share` of the requests, at least one; None of one request."""
        if not 0 < share < 1:
            raise OptionError(f"holdout={share} must be between 0 and 1, both excluded")
        requests = len(self.count_QLE)
        if requests < 2:
            return self, None
        drawn = draw([str(q) for q in self.selected.tolist()], share, seed)
        return self._only(~drawn), self._only(drawn)

    def workload(self, seed: int) -> Workload:
        """Statistics with an empty token sample; as many request profiles as of a trace, none of one total."""
        model = self.model
        check_fits_memory(model, pairs_bytes(model))
        key_Q = request_keys([str(q) for q in self.selected.tolist()], seed)
        order = np.argsort(key_Q, kind="stable")[: PROFILE_REQUESTS if len(key_Q) > 1 else 0]
        return Workload(
            model=model,
            num_tokens=self.num_tokens,
            seed=seed,
            sample_tokens=SAMPLE_TOKENS,
            profile_requests=PROFILE_REQUESTS,
            load_LE=self.load_LE(),
            coact_LEE=np.zeros((model.num_layers, model.num_experts, model.num_experts), dtype=np.int64),
            sample_key_S=np.empty(0, dtype=np.uint64),
            sample_owner_S=np.empty(0, dtype=np.uint64),
            sample_ids_SLK=np.empty((0, model.num_layers, model.top_k), dtype=id_dtype(model.num_experts)),
            profile_key_Q=key_Q[order],
            profile_QLE=self.count_QLE[order].astype(np.uint32),
        )

    def _only(self, mine: npt.NDArray[np.bool_]) -> ExpertCounts:
        return replace(self, count_QLE=self.count_QLE[mine], selected=self.selected[mine])


def is_counts_file(path: str | Path) -> bool:
    return Path(path).suffix in SUFFIXES


def read_counts(path: str | Path, top_k: int | None = None) -> ExpertCounts:
    """Read a counts file; `top_k` is needed where the file does not say it. Raises TraceError, OptionError."""
    path = Path(path)
    arrays = _arrays(path)
    key = next((name for name in KEYS if name in arrays), None)
    if key is None:
        raise TraceError(f"{path} has no array 'counts'; it has {', '.join(arrays) or 'none'}; save counts=[Q, L, E]")
    count_QLE, unit = _whole(path, key, arrays[key])
    _, num_layers, num_experts = count_QLE.shape
    said, hidden = (
        _number(path, key, arrays[key]) if key in arrays else None for key in ("top_k", "num_hidden_layers")
    )
    if top_k is not None and said not in (None, top_k):
        raise OptionError(f"top_k={top_k} is not that of {path}, {said}; leave --top-k out")
    known = said if top_k is None else top_k
    if known is None:
        raise OptionError(f"{path} does not say how many experts a token visits; give --top-k K, or save it as top_k")
    layer_ids = arrays.get("layer_ids", np.arange(num_layers))
    if layer_ids.shape != (num_layers,) or layer_ids.dtype.kind not in "iu":
        raise TraceError(
            f"{path}: layer_ids has shape {list(layer_ids.shape)} and dtype {layer_ids.dtype}; one whole number for "
            f"each of {num_layers} layers is needed"
        )
    live_L = count_QLE.any(axis=(0, 2))
    try:
        model = Model(
            name=str(arrays.get("model", path.stem)),
            layer_ids=tuple(layer_ids.tolist()),
            num_experts=num_experts,
            top_k=known,
            num_hidden_layers=hidden,
        )
        if not live_L.all():
            model = replace(model, layer_ids=tuple(layer_ids[live_L].tolist()))
    except InputError as error:
        raise TraceError(f"{path}: {error}") from None
    return ExpertCounts(
        model=model,
        count_QLE=count_QLE if live_L.all() else count_QLE[:, live_L],
        unit=unit,
        selected=np.arange(len(count_QLE)),
        left_out=tuple(layer_ids[~live_L].tolist()),
    )


def write_counts(path: str | Path, model: Model, count_QLE: npt.NDArray[np.int64]) -> None:
    """Write a file that `read_counts` reads. Raises OutputError."""
    small = count_QLE.astype(np.uint32) if count_QLE.max(initial=0) < 2**32 else count_QLE
    buffer = io.BytesIO()
    known = {"layer_ids": model.layer_ids, "top_k": model.top_k, "num_hidden_layers": model.num_hidden_layers}
    numbers = {key: np.array(value, dtype=np.int64) for key, value in known.items() if value is not None}
    arrays = {"counts": small, **numbers, "model": np.array(model.name)}
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(path, buffer.getvalue())


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with path.open("rb") as file:
            found = read_arrays(file, *KEYS, "layer_ids", "top_k", "num_hidden_layers", "model")
            return {"counts": found[""]} if "" in found else found
    except (OSError, ValueError, MemoryError) as error:
        what = getattr(error, "strerror", None) or error
        raise TraceError(
            f"cannot read {path}: {what}; give a .npy or .npz of numbers, without pickled objects"
        ) from None


def _whole(path: Path, key: str, array: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], float]:
    """Counts as whole numbers [Q, L, E], and their unit: fractions are scaled."""
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise TraceError(
            f"{path}: {key} has shape {list(array.shape)}; [layers, experts] or [requests, layers, experts] is allowed"
        )
    if array.dtype.kind not in "iuf":
        raise TraceError(f"{path}: {key} has dtype {array.dtype}; whole or floating-point numbers are allowed")
    values = array if array.ndim == 3 else array[None]
    if not np.isfinite(values).all() or values.min() < 0:
        bad = values.min() if np.isfinite(values).all() else "infinite or not a number"
        raise TraceError(f"{path}: {key} has values that are {bad}; 0 and more are allowed")
    if not values.any():
        raise TraceError(f"{path}: {key} is all 0: nothing was counted in any layer; count some requests first")
    largest = float(values.max())
    if array.dtype.kind in "iu" or bool((values == np.rint(values)).all()):
        if (array.ndim == 3 and largest >= LARGEST) or largest * values.shape[0] * values.shape[2] >= 2**62:
            raise TraceError(f"{path}: {key} has values up to {largest:.3g}; a request has less than 2^32, all 2^62")
        return values.astype(np.int64), 1.0
    if largest < SMALLEST:
        raise TraceError(f"{path}: {key} has values up to {largest:.3g}; of fractions one must be {SMALLEST:g} or more")
    unit = largest / FINEST
    return np.rint(values.astype(np.float64) / unit).astype(np.int64), unit


def _number(path: Path, key: str, array: npt.NDArray[Any]) -> int:
    if array.size != 1 or array.dtype.kind not in "iu":
        raise TraceError(f"{path}: {key} must be one whole number; it has shape {list(array.shape)}, {array.dtype}")
    return int(array.reshape(()))
