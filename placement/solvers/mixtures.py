"""A layer's problem on a mixture of parts: what it costs is the weighted mean of what it costs on each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from placement.cost.sets import distinct_sets
from placement.solvers.problem import LayerProblem

SCALE = 1 << 24
MOST_ROWS, NEAR = 64, 0.005  # rows of parts that have one each, and how far their shares may be from the weights


class Mixtures:
    """All mixtures of the problems of one layer; `whole` is that of all training requests together."""

    def __init__(self, whole: LayerProblem, parts: Sequence[LayerProblem]) -> None:
        self.whole, self.parts = whole, tuple(parts)
        stacked = np.concatenate([part.sets_UK for part in parts])
        self.sets_UK, _ = distinct_sets(stacked, whole.num_experts)
        row = {tuple(ids): u for u, ids in enumerate(self.sets_UK.tolist())}
        self.share_WU = np.zeros((len(parts), len(self.sets_UK)))
        for w, part in enumerate(parts):
            mine = [row[tuple(ids)] for ids in part.sets_UK.tolist()]
            self.share_WU[w, mine] = part.count_U / max(int(part.count_U.sum()), 1)

    def problem(self, weight_W: npt.NDArray[np.float64], seed: int) -> LayerProblem:
        """The mixture under weights that sum to 1.

        Its first row of loads is that of all training requests, on which caps are judged; every further row is one of
        a part (the exact one, then bootstraps), and a part has rows in proportion to its weight: the mean imbalance
        over rows is then the weighted mean over parts, which that of mixed loads would be below.
        """
        count_U = np.rint(weight_W @ self.share_WU * SCALE).astype(np.int64)
        seen = np.flatnonzero(count_U)
        coact_EE = sum(
            (weight * SCALE / max(int(part.coact_EE.sum()), 1)) * part.coact_EE
            for weight, part in zip(weight_W, self.parts, strict=True)
        )
        return replace(
            self.whole,
            sets_UK=np.ascontiguousarray(self.sets_UK[seen]),
            count_U=count_U[seen],
            load_BE=self._load_BE(weight_W),
            coact_EE=np.rint(coact_EE).astype(np.int64),
            seed=seed,
        )

    def _load_BE(self, weight_W: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        most = max(len(part.load_BE) for part in self.parts)
        rows_W = _in_proportion(weight_W, most) if most > 1 else _fewest_rows(weight_W)
        rows = [part.load_BE[np.arange(n) % len(part.load_BE)] for n, part in zip(rows_W, self.parts, strict=True)]
        return np.concatenate([self.whole.load_BE[:1], *rows])


def _fewest_rows(weight_W: npt.NDArray[np.float64]) -> list[int]:
    """How often each part's only row is taken, so that the weights are met nearly."""
    for total in range(len(weight_W), MOST_ROWS):
        rows_W = _in_proportion(weight_W, total)
        if np.abs(np.array(rows_W) / total - weight_W).max() <= NEAR:
            return rows_W
    return _in_proportion(weight_W, MOST_ROWS)


def _in_proportion(weight_W: npt.NDArray[np.float64], total: int) -> list[int]:
    """`total` shared in proportion to the weights, by largest remainders."""
    exact = weight_W * total
    whole = np.floor(exact).astype(np.int64)
    order = np.argsort(whole - exact, kind="stable")[: total - int(whole.sum())]
    whole[order] += 1
    return [int(number) for number in whole]
