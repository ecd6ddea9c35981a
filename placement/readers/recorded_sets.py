"""What all sets of a recording have in common, by layer: how many experts they have, and how they end."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import numpy as np
import numpy.typing as npt

from placement.errors import TraceError
from placement.readers import cleaning_kernels as kernels
from placement.readers.padding import CHANCE

MOST_PLACES = 65_536  # experts of a layer


@dataclass(frozen=True, slots=True, kw_only=True)
class SetSizes:
    """Of N layers.

    places_N  places of a recorded set that may hold an expert, counted from the first
    filled_N  0s at the end of those places are places that nobody wrote to
    most_N    most experts of a set
    least_N   fewest experts of a set
    """

    places_N: npt.NDArray[np.int64]
    filled_N: npt.NDArray[np.bool_]
    most_N: npt.NDArray[np.int64]
    least_N: npt.NDArray[np.int64]


class RecordedSets:
    """Grows with every batch; see `kernels.look_at_sets` for the arrays. `width`: places of a recorded set."""

    def __init__(self, num_layers: int, limit: int) -> None:
        self.limit = limit
        self.rows = self.width = 0
        self.largest_L = np.full(num_layers, -1, dtype=np.int32)
        self.most_LZ = np.full((num_layers, 1), -1, dtype=np.int64)
        self.least_LZ = np.full((num_layers, 1), kernels.NEVER, dtype=np.int64)
        self.last_L = np.full(num_layers, kernels.UNSEEN, dtype=np.int32)
        self.beyond_LX = np.zeros((num_layers, kernels.BEYOND), dtype=np.int64)
        self.beyond_LX[:, kernels.LEAST] = kernels.NEVER

    def look(self, where: str, ids_LTK: npt.NDArray[np.int32], skip_T: npt.NDArray[np.bool_]) -> None:
        """Look at the rows that are not skipped.

        Raises:
            TraceError: An id is negative and not -1, or sets have more places than a model has experts.
        """
        if ids_LTK.shape[2] > MOST_PLACES:
            raise TraceError(
                f"{where}: sets have {ids_LTK.shape[2]:,} places; a layer has at most {MOST_PLACES:,} experts: is it "
                "another format? force it with --from"
            )
        self.rows += len(skip_T) - int(np.count_nonzero(skip_T))
        wider = ids_LTK.shape[2] - self.width
        if wider > 0:
            self.width = ids_LTK.shape[2]
            self.most_LZ = np.pad(self.most_LZ, ((0, 0), (0, wider)), constant_values=-1)
            self.least_LZ = np.pad(self.least_LZ, ((0, 0), (0, wider)), constant_values=kernels.NEVER)
        sound = kernels.look_at_sets(
            ids_LTK, skip_T, self.limit, self.largest_L, self.most_LZ, self.least_LZ, self.last_L, self.beyond_LX
        )
        check_sound(where, ids_LTK, sound)

    def live(self) -> npt.NDArray[np.int64]:
        """Indices of the layers with experts; of one expert a token, a layer that only knows expert 0 is a dense one's
        zeros."""
        most_L = self.most_LZ.max(axis=1)
        visited_L = (most_L > 0) | (self.beyond_LX[:, kernels.PLACES] > 0)
        if most_L.max() == 1 and self.largest_L.max() > 0:
            visited_L &= self.largest_L > 0
        return np.flatnonzero(visited_L)

    def sizes(self, layers: npt.NDArray[np.int64], num_experts: int, *, trust: bool) -> SetSizes:
        """How many experts sets have, and in which of their places.

        A place that is 0 in every set is a place that nobody wrote to, where chance does not explain so many 0s, and so
        are all 0s at the end of sets in a layer where a set ends with several. `trust`: only the latter.
        """
        most_NZ, least_NZ = self.most_LZ[layers], self.least_LZ[layers]
        there_NZ = most_NZ > 0
        zeros = np.arange(self.width + 1)
        cut_N = np.minimum(there_NZ.argmax(axis=1), self.width - 1)
        whole_N = np.where(there_NZ, least_NZ, self.width).min(axis=1) == self.width
        written_N = whole_N & (self.beyond_LX[layers, kernels.PLACES] == 0)
        cut_N = np.where(written_N & (not trust and self._is_constant(num_experts)), cut_N, 0)
        filled_N = np.asarray((there_NZ & (zeros >= cut_N[:, None] + 2)).any(axis=1))
        gone_NZ = np.where(filled_N[:, None], zeros, cut_N[:, None])
        return SetSizes(
            places_N=self.width - cut_N,
            filled_N=filled_N,
            most_N=np.where(there_NZ, most_NZ - gone_NZ, 0).max(axis=1),
            least_N=np.where(least_NZ < kernels.NEVER, least_NZ - np.where(least_NZ > 0, gone_NZ, 0), self.width).min(
                axis=1
            ),
        )

    def fused(self, layers: npt.NDArray[np.int64], num_experts: int) -> int | None:
        """The id, not 0, that is in the last place of every set in all layers, more often than chance explains."""
        last_N = self.last_L[layers]
        same = self.width > 1 and last_N[0] > 0 and bool((last_N == last_N[0]).all())
        return int(last_N[0]) if same and self._is_constant(num_experts) else None

    def _is_constant(self, num_experts: int) -> bool:
        """True if what is the same in all rows can hardly be so by chance; a set has an expert in K of E cases."""
        likely = min(self.width / num_experts, 1.0)
        return self.rows * log(likely) + log(len(self.last_L)) < log(CHANCE)


def check_sound(where: str, ids_LTK: npt.NDArray[np.int32], sound: bool) -> None:
    """Raise TraceError unless a kernel found the ids sound."""
    if not sound:
        raise TraceError(
            f"{where}: expert id {int(ids_LTK.min())} is negative; of these only -1, for none, is allowed: record again"
        )
