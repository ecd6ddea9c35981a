"""From an engine's batches to a trace: what is no token of a request is found, left out and reported.

Two passes. The survey finds the layers that nobody wrote to (dense ones), the width of a top-k set, the largest id, and
warm-up batches: at least WARM_UP tokens that all visit exactly the same experts in every layer, as the dummy tokens do
with which engines warm up. The second pass translates the ids of what is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from placement.core.model import Model, layers_named, ranges
from placement.errors import InputError, OptionError, TraceError
from placement.readers import cleaning_kernels as kernels
from placement.readers.base import Batch, ReadOptions, Recording
from placement.traces.format import RequestEntry, id_dtype
from placement.traces.storage.shard_writer import TokenPiece

WARM_UP = 16
LARGEST_ID = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What the first pass saw: `layers` are the indices of those with experts, `warm_up` the rows of dummy tokens.

    guessed: the number of experts is that of the largest id.
    """

    model: Model
    layers: npt.NDArray[np.int64]
    weights: bool
    guessed: bool
    warm_up: frozenset[bytes]


@dataclass(slots=True)
class Cleaner:
    """The pieces of a recording to write; `requests` and what was left out are complete when all were drawn."""

    recording: Recording
    survey: Survey
    requests: list[RequestEntry] = field(default_factory=list)
    unused: int = 0
    warm_up: int = 0
    incomplete: int = 0

    def pieces(self) -> Iterator[TokenPiece]:
        """Raises TraceError on ids out of range or twice in a set, and where no token is left."""
        number_of: dict[str, int] = {}
        model, layers = self.survey.model, self.survey.layers
        phy2log_LP = self.recording.phy2log_LP
        if phy2log_LP is None:
            shape = (len(self.recording.layer_ids), model.num_experts)
            phy2log_LP = np.ascontiguousarray(np.broadcast_to(np.arange(model.num_experts, dtype=np.int32), shape))
        dtype = id_dtype(model.num_experts)
        written = 0
        for batch in self.recording.batches():
            rows_R = self._kept(batch)
            if not len(rows_R):
                continue
            ids_LRK = np.empty((len(layers), len(rows_R), model.top_k), dtype=dtype)
            fault, layer, row = kernels.translate(batch.ids_LTK, layers, rows_R, phy2log_LP, ids_LRK)
            if fault != kernels.OK:
                raise self._error(batch, fault, layer, row, phy2log_LP.shape[1])
            request_R = batch.request_T[rows_R]
            names = np.zeros(len(batch.requests), dtype=np.int32)
            for local in np.unique(request_R).tolist():
                entry = batch.requests[local]
                if entry.id not in number_of:
                    number_of[entry.id] = len(self.requests)
                    self.requests.append(entry)
                names[local] = number_of[entry.id]
            written += len(rows_R)
            yield TokenPiece(
                ids_LTK=ids_LRK,
                weights_LTK=_weights(batch, layers, rows_R, model.top_k) if self.survey.weights else None,
                request_T=names[request_R],
                position_T=batch.position_T[rows_R],
                phase_T=batch.phase_T[rows_R],
            )
        if not written:
            raise TraceError(f"{self.recording.model}: no token has all its experts; {self._left_out()}; record again")

    def notes(self) -> list[str]:
        """What was left out, one line each."""
        model, ids = self.survey.model, self.recording.layer_ids
        dense = [ids[layer] for layer in range(len(ids)) if ids[layer] not in model.layer_ids]
        notes = []
        if dense:
            notes.append(f"{layers_named(dense)} left out: dense, no token has experts there")
        if self.unused or self.warm_up or self.incomplete:
            notes.append(self._left_out())
        if self.survey.guessed:
            notes.append(f"{model.num_experts} experts: the largest id plus one; give --experts if the model has more")
        return notes

    def _left_out(self) -> str:
        parts = [
            f"{count:,} {what}"
            for count, what in (
                (self.unused, "unused rows"),
                (self.warm_up, "warm-up tokens"),
                (self.incomplete, "tokens without experts in some layer"),
            )
            if count
        ]
        return f"left out: {', '.join(parts) or 'nothing'}"

    def _kept(self, batch: Batch) -> npt.NDArray[np.int64]:
        width_LT, _ = _widths(batch)
        live_LT = width_LT[self.survey.layers]
        full_T = (live_LT == self.survey.model.top_k).all(axis=0)
        unused = int(np.count_nonzero((live_LT == 0).all(axis=0)))
        self.unused += unused
        self.incomplete += len(full_T) - int(np.count_nonzero(full_T)) - unused
        for row in self.survey.warm_up:
            ids_LK = np.frombuffer(row, dtype=np.int32).reshape(len(batch.ids_LTK), -1)
            if ids_LK.shape[1] == batch.ids_LTK.shape[2]:
                same_T = full_T & (batch.ids_LTK == ids_LK[:, None]).all(axis=(0, 2))
                self.warm_up += int(np.count_nonzero(same_T))
                full_T &= ~same_T
        return np.flatnonzero(full_T)

    def _error(self, batch: Batch, fault: int, layer: int, row: int, num_ids: int) -> TraceError:
        ids = batch.ids_LTK[layer, row, : self.survey.model.top_k].tolist()
        what = {
            kernels.ID_OUT_OF_RANGE: f"has expert ids {ids}; ids from 0 to {num_ids - 1} are allowed; "
            f"{self.recording.id_fault}",
            kernels.DUPLICATE_ID: f"has experts {ids}, of which one is there twice; the ids of a set must differ; "
            "is it another format? force it with --from",
        }[fault]
        return TraceError(f"{batch.where}: layer {self.recording.layer_ids[layer]}, token {row} {what}")


def survey(recording: Recording, options: ReadOptions) -> Survey:
    """Read all of a recording once. Raises TraceError, and OptionError where an option contradicts it."""
    num_layers = len(recording.layer_ids)
    if recording.phy2log_LP is not None:
        check_layers(options, len(recording.phy2log_LP), "the map of the recording")
    max_L = np.full(num_layers, -1, dtype=np.int32)
    live_L = np.zeros(num_layers, dtype=bool)
    top_k, weights = 0, True
    warm_up: set[bytes] = set()
    for batch in recording.batches():
        if batch.ids_LTK.shape[0] != num_layers:
            check_layers(options, batch.ids_LTK.shape[0], batch.where)
            raise TraceError(
                f"{batch.where} has {batch.ids_LTK.shape[0]} layers; what came before has {num_layers}: "
                f"convert recordings of different models apart"
            )
        if not batch.ids_LTK.size:
            continue
        width_LT, largest_L = _widths(batch)
        max_L = np.maximum(max_L, largest_L)
        live_L |= (width_LT != 0).any(axis=1)
        top_k = max(top_k, int(width_LT.max()))
        weights &= batch.weights_LTK is not None
        first_LK = batch.ids_LTK[:, 0]
        if batch.ids_LTK.shape[1] >= WARM_UP and (batch.ids_LTK == first_LK[:, None]).all():
            warm_up.add(first_LK.tobytes())
    if top_k == 0:
        raise TraceError(f"{recording.model}: no token has any expert; record some requests first")
    if top_k == 1 and max_L.max() > 0:
        live_L &= max_L > 0  # of one expert a token, a layer that only knows expert 0 is a dense one's zeros
    return Survey(
        model=_model(recording, options, live_L, top_k, int(max_L.max())),
        layers=np.flatnonzero(live_L),
        weights=weights,
        guessed=recording.num_experts is None and options.num_experts is None,
        warm_up=frozenset(warm_up),
    )


def check_layers(options: ReadOptions, num_layers: int, what: str) -> None:
    """Raise OptionError if --layer-ids names another number of layers."""
    if options.layer_ids is not None and len(options.layer_ids) != num_layers:
        raise OptionError(
            f"--layer-ids names {len(options.layer_ids)} layers and {what} has {num_layers}; name each, dense ones too"
        )


def _model(
    recording: Recording, options: ReadOptions, live_L: npt.NDArray[np.bool_], top_k: int, largest: int
) -> Model:
    if options.top_k not in (None, top_k):
        raise OptionError(f"--top-k {options.top_k} is not what the recording has, {top_k}; leave it out")
    if options.layer_ids not in (None, recording.layer_ids):
        raise OptionError(f"--layer-ids is not what the recording says, {ranges(recording.layer_ids)}; leave it out")
    said = recording.num_experts
    if said is not None and options.num_experts not in (None, said):
        raise OptionError(f"--experts {options.num_experts} is not what the recording says, {said}; leave it out")
    if recording.phy2log_LP is None and largest > LARGEST_ID:
        raise TraceError(f"{recording.model}: expert id {largest} is out of range; {recording.id_fault}")
    num_experts = said or options.num_experts or largest + 1
    try:
        return Model(
            name=options.model or recording.model,
            layer_ids=tuple(one for one, live in zip(recording.layer_ids, live_L, strict=True) if live),
            num_experts=num_experts,
            top_k=top_k,
            num_hidden_layers=recording.num_hidden_layers,
        )
    except InputError as error:
        raise TraceError(f"{recording.model}: {error}") from None


def _widths(batch: Batch) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int32]]:
    width_LT = np.empty(batch.ids_LTK.shape[:2], dtype=np.int16)
    max_L = np.full(len(batch.ids_LTK), -1, dtype=np.int32)
    if not kernels.set_widths(batch.ids_LTK, width_LT, max_L):
        raise TraceError(
            f"{batch.where}: expert id {int(batch.ids_LTK.min())} is negative; of these only -1, for none, is allowed: "
            f"record again"
        )
    return width_LT, max_L


def _weights(
    batch: Batch, layers: npt.NDArray[np.int64], rows_R: npt.NDArray[np.int64], top_k: int
) -> npt.NDArray[np.float16] | None:
    return None if batch.weights_LTK is None else batch.weights_LTK[layers][:, rows_R, :top_k]
