"""From an engine's batches to a trace: what is no token of a request is left out and reported.

Two passes. The survey finds the layers that nobody wrote to (dense ones), how many experts sets have, the largest id,
and rows that are padding. The second pass translates the ids of what is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from placement.core.model import layers_named
from placement.errors import TraceError
from placement.readers import cleaning_kernels as kernels
from placement.readers.base import Batch, Recording
from placement.readers.left_out import UNUSED, LeftOut
from placement.readers.survey import Survey
from placement.readers.token_ids import KeptIds
from placement.traces.format import RequestEntry, id_dtype
from placement.traces.prompts import TokenLists
from placement.traces.storage.shard_writer import TokenPiece

NO_WEIGHTS = np.empty((0, 0, 0), dtype=np.uint16)


@dataclass(slots=True)
class Cleaner:
    """The pieces of a recording to write; `requests` and what was left out are complete when all were drawn."""

    recording: Recording
    survey: Survey
    requests: list[RequestEntry] = field(default_factory=list)
    number_of: dict[str, int] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)
    kept_ids: KeptIds = field(default_factory=KeptIds)
    tokens: int = 0
    short_tokens: int = 0
    missing_places: int = 0

    def pieces(self) -> Iterator[TokenPiece]:
        """Raises TraceError on ids out of range or twice in a set, and where no token is left."""
        phy2log_LP = self.recording.phy2log_LP
        if phy2log_LP is None:
            experts = self.survey.model.num_experts
            shape = (len(self.recording.layer_ids), experts)
            phy2log_LP = np.ascontiguousarray(np.broadcast_to(np.arange(experts, dtype=np.int32), shape))
        for batch in self.recording.batches():
            rows_R = self._kept(batch)
            if not len(rows_R):
                continue
            rows_R, ids_NRK, bits_NRK = self._translated(batch, rows_R, phy2log_LP)
            request_R = batch.request_T[rows_R]
            names = np.zeros(len(batch.requests), dtype=np.int32)
            for local in np.unique(request_R).tolist():
                entry = batch.requests[local]
                if entry.id not in self.number_of:
                    self.number_of[entry.id] = len(self.requests)
                    self.requests.append(entry)
                names[local] = self.number_of[entry.id]
            self.tokens += len(rows_R)
            yield TokenPiece(
                ids_LTK=ids_NRK,
                weights_LTK=bits_NRK.view(np.float16) if self.survey.weights else None,
                request_T=names[request_R],
                position_T=batch.position_T[rows_R],
                phase_T=batch.phase_T[rows_R],
                token_T=self.kept_ids.take(batch, rows_R),
            )
        if not self.tokens:
            told = "; ".join(self.left_out.notes()) or "nothing was left out"
            raise TraceError(f"{self.recording.model}: no token has any expert; {told}; record again")

    def prompts(self) -> TokenLists | None:
        """Prompts of `requests` of which rows are lacking; None where there are none."""
        return self.kept_ids.left([entry.id for entry in self.requests])

    def notes(self) -> list[str]:
        """What was left out, what is short and what is content, one line each."""
        model, ids = self.survey.model, self.recording.layer_ids
        dense = [ids[layer] for layer in range(len(ids)) if ids[layer] not in model.layer_ids]
        notes = []
        if dense:
            notes.append(f"{layers_named(dense)} left out: dense, no token has experts there")
        notes += self.left_out.notes(self.number_of, len(self.requests))
        if self.missing_places:
            most = self.survey.sizes.most_N
            than = f"{model.top_k} experts" if (most == model.top_k).all() else "the most that others have"
            share = self.missing_places / (self.tokens * int(most.sum()))
            notes.append(
                f"{self.short_tokens:,} of {self.tokens:,} tokens have fewer than {than} in some layer "
                f"({self.missing_places:,} places, {share:.2%})"
            )
        return [*notes, *self.survey.notes, *self.kept_ids.notes(self.prompts())]

    def _kept(self, batch: Batch) -> npt.NDArray[np.int64]:
        """The rows that are tokens."""
        num_rows = batch.ids_LTK.shape[1]
        unused_T = np.empty(num_rows, dtype=bool)
        kernels.blank_rows(batch.ids_LTK, self.survey.layers, unused_T)
        dropped_T = unused_T.copy()
        self.left_out.add(UNUSED, batch, unused_T)
        same = [one for one in self.survey.padding if one.ids_LK.shape[1] == batch.ids_LTK.shape[2]]
        if same:
            found_T = np.empty(num_rows, dtype=np.int32)
            kernels.match_rows(batch.ids_LTK, np.stack([one.ids_LK for one in same]), found_T)
            found_T[unused_T] = -1
            begins_T = np.ones(num_rows, dtype=bool)
            begins_T[1:] = (found_T[1:] != found_T[:-1]) | (batch.request_T[1:] != batch.request_T[:-1])
            keeps_P = np.array([one.keeps_first for one in same])
            found_T[(found_T >= 0) & keeps_P[found_T] & begins_T] = -1
            for number in np.unique(found_T[found_T >= 0]).tolist():
                what = same[number].what
                self.left_out.add(what, batch, found_T == number)
                unused_T |= (found_T == number) & what.startswith(UNUSED)
            dropped_T |= found_T >= 0
        rows_R = np.flatnonzero(~dropped_T)
        if unused_T.any():
            self.left_out.add_first(batch, unused_T, rows_R, self.number_of)
        return rows_R

    def _translated(
        self, batch: Batch, rows_R: npt.NDArray[np.int64], phy2log_LP: npt.NDArray[np.int32]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.generic], npt.NDArray[np.uint16]]:
        """(rows that have an expert, their logical ids and the bits of their weights, both [N, R, K])."""
        seen = self.survey
        shape = (len(seen.layers), len(rows_R), seen.model.top_k)
        ids_NRK = np.empty(shape, dtype=id_dtype(seen.model.num_experts, short=seen.short))
        bits_LTK = NO_WEIGHTS if batch.weights_LTK is None else batch.weights_LTK.view(np.uint16)
        bits_NRK = np.empty(shape if seen.weights else (0, 0, 0), dtype=np.uint16)
        size_NR = np.empty(shape[:2], dtype=np.int32)
        fault, layer, row = kernels.translate(
            batch.ids_LTK,
            bits_LTK,
            seen.layers,
            rows_R,
            phy2log_LP,
            seen.limit,
            seen.sizes.places_N,
            seen.sizes.filled_N,
            seen.short,
            ids_NRK,
            bits_NRK,
            size_NR,
        )
        if fault != kernels.OK:
            raise self._error(batch, fault, layer, row, phy2log_LP.shape[1])
        if not seen.short:
            return rows_R, ids_NRK, bits_NRK
        some_R = size_NR.any(axis=0)
        if not some_R.all():
            without_T = np.zeros(batch.ids_LTK.shape[1], dtype=bool)
            without_T[rows_R[~some_R]] = True
            self.left_out.add("tokens without any expert", batch, without_T)
            rows_R, ids_NRK, size_NR = rows_R[some_R], ids_NRK[:, some_R], size_NR[:, some_R]
            bits_NRK = bits_NRK[:, some_R] if bits_NRK.size else bits_NRK
        missing_NR = seen.sizes.most_N[:, None] - size_NR
        self.short_tokens += int(np.count_nonzero(missing_NR.any(axis=0)))
        self.missing_places += int(missing_NR.sum())
        return rows_R, ids_NRK, bits_NRK

    def _error(self, batch: Batch, fault: int, layer: int, row: int, num_ids: int) -> TraceError:
        ids = batch.ids_LTK[layer, row].tolist()
        what = {
            kernels.ID_OUT_OF_RANGE: f"has expert ids {ids}; ids from 0 to {num_ids - 1} are allowed; "
            f"{self.recording.id_fault}",
            kernels.DUPLICATE_ID: f"has experts {ids}, of which one is there twice; the ids of a set must differ; "
            "is it another format? force it with --from",
            kernels.CHANGED: f"has experts {ids}, which were others before; convert when nothing writes to it any more",
        }[fault]
        return TraceError(f"{batch.where}: layer {self.recording.layer_ids[layer]}, token {row} {what}")
