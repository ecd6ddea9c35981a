"""What a job keeps of a solution for the page: figures by layer, which the placement file does not have."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from placement.pipeline.solution import Solution
from placement.report.solution.expert_maps import slot_load_LP
from placement.report.solution.solution_charts import rank_load_LG
from placement.report.solution.summary import headline, shown_part

Floats = npt.NDArray[np.float64]
KEPT = 64  # in memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """part          what was measured on: held-out or training
    headline      the result in a sentence
    sends         by map: sends per token of every layer, [L]; NaN where there are counts only
    imbalance     by map: most loaded rank over the mean rank, [L]
    rank_load     by map: load of every rank over the mean rank, [L, G]
    slot_load_LP  the result's load of every slot over the mean slot
    """

    part: str
    headline: str
    sends: dict[str, Floats]
    imbalance: dict[str, Floats]
    rank_load: dict[str, Floats]
    slot_load_LP: Floats

    @property
    def sends_known(self) -> bool:
        return all(bool(np.isfinite(sends_L).all()) for sends_L in self.sends.values())


def figures_bytes(solution: Solution) -> bytes:
    """As JSON; four decimals are more than a page shows."""
    part, answers = shown_part(solution)
    document = {
        "part": part,
        "headline": headline(solution),
        "sends": {name: _rows(answer.sends_L) for name, answer in answers.items()},
        "imbalance": {name: _rows(answer.rank_imbalance_L()) for name, answer in answers.items()},
        "rank_load": {name: _rows(rank_load_LG(answer)) for name, answer in answers.items()},
        "slot_load_LP": _rows(slot_load_LP(answers[solution.result_name])),
    }
    return json.dumps(document, separators=(",", ":")).encode(errors="replace")


@lru_cache(KEPT)
def read_figures(path: Path) -> Figures:
    """Of a file that is named by its content."""
    document = json.loads(path.read_bytes())
    arrays = {
        name: {key: np.array(rows, dtype=np.float64) for key, rows in document[name].items()}
        for name in ("sends", "imbalance", "rank_load")
    }
    slots = np.array(document["slot_load_LP"], dtype=np.float64)
    return Figures(part=document["part"], headline=document["headline"], slot_load_LP=slots, **arrays)


def _rows(values: Floats) -> list[object]:
    """Nested lists; null is not a number."""
    rounded = np.round(values, 4).astype(object)
    rounded[~np.isfinite(values)] = None
    return list(rounded.tolist())
