"""What the pages about placements show of one, from the row of its job and its files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from placement.core.placement import Placement
from placement.documents.placement import PlacementFile, load_placement
from placement.report.drawing.numbers import NONE, number, percent, plural
from placement.report.solution.solution_charts import series_of, shape_of
from placement.solvers.options import Options
from placement_api.pages.figures import KEPT, Figures, read_figures
from placement_api.pages.marks import change_mark
from placement_api.store.blobs import Blobs
from placement_api.store.tables import JobRow

REFERENCE = "eplb"
DEFAULTS = asdict(Options())
PLAIN = ("seed", "bound", "time_limit_s", "work_limit")  # options that change how hard is searched, not what for


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """placement, file  the map and its file; figures are None of what was solved before they were kept."""

    row: JobRow
    placement: Placement
    file: PlacementFile
    figures: Figures | None

    @property
    def summary(self) -> dict[str, Any]:
        return self.row.summary

    @property
    def maps(self) -> dict[str, Any]:
        """By map: the summary of its evaluation, the held-out one if there is any."""
        maps: dict[str, Any] = self.row.summary["maps"]
        return maps

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = self.maps[self.row.summary["result"]]
        return found

    @property
    def before(self) -> str:
        """The map that the result is set beside."""
        return "linear" if self.row.summary["result"] == REFERENCE else REFERENCE

    def tiles(self) -> list[tuple[str, str, str, Markup]]:
        """(what, value, beside what, better or worse)."""
        mine, other = self.result, self.maps[self.before]
        shown = [
            ("Sends per token to other nodes", mine["sends_per_token"], other["sends_per_token"], ""),
            ("Rank imbalance", mine["rank_imbalance"]["mean"], other["rank_imbalance"]["mean"], ""),
            ("Modelled step time", mine["step_time_us"], other["step_time_us"], " µs"),
        ]
        found = [self._tile(*one) for one in shown]
        return [*found, (*self._proof(), Markup())]

    def _tile(self, what: str, value: float | None, other: float | None, unit: str) -> tuple[str, str, str, Markup]:
        if value is None:
            return what, "unknown", "the input holds counts only", Markup()
        return what, f"{number(value)}{unit}", f"{self.before} {number(other)}{unit}", change_mark(value, other)

    def gap(self) -> float | None:
        """Mean over the layers that have one."""
        gaps = [layer.gap for layer in self.file.layers or [] if layer.gap is not None]
        return float(np.mean(gaps)) if gaps else None

    def _proof(self) -> tuple[str, str, str]:
        gap = self.gap()
        if gap is None:
            return "Proven gap to the optimum", NONE, "no bound was computed"
        optimal = sum(layer.status == "optimal" for layer in self.file.layers or [])
        beside = (
            f"at most, mean of layers; {optimal} proven optimal"
            if optimal
            else "at most, mean of layers, of the training objective"
        )
        return "Proven gap to the optimum", percent(gap), beside

    def legend(self) -> list[tuple[str, str, str]]:
        return [(name, series_of(name), shape_of(name)) for name in self.maps]


def look(blobs: Blobs, row: JobRow) -> Look:
    placement, file = _loaded(blobs.path(row.files["placement"]))
    figures = read_figures(blobs.path(row.files["figures"])) if "figures" in row.files else None
    return Look(row=row, placement=placement, file=file, figures=figures)


@lru_cache(KEPT)
def _loaded(path: Path) -> tuple[Placement, PlacementFile]:
    return load_placement(path)


def wanted(row: JobRow) -> str:
    """What was asked for beyond the defaults: what tells placements of one trace apart."""
    options = {name: value for name, value in row.request["options"].items() if value != DEFAULTS.get(name)}
    said = [str(options.pop("solver", DEFAULTS["solver"])), str(options.pop("objective", DEFAULTS["objective"]))]
    said += [
        f"{name.replace('_', ' ')} {value}"
        for name, value in options.items()
        if name not in PLAIN and value is not None
    ]
    for name in ("robust", "group", "current"):
        if row.request.get(name) is not None:
            said.append({"robust": "robust", "group": "with homes", "current": "from a map in use"}[name])
    return ", ".join(said)


def size(summary: dict[str, Any]) -> str:
    slots = plural(summary["slots_per_gpu"], "slot")
    return f"{summary['num_nodes']} × {summary['gpus_per_node']} GPUs × {slots}"


def sought(row: JobRow) -> str:
    """What a job of any kind was asked for."""
    if row.kind == "evaluate":
        return "measure a placement"
    if row.kind == "study":
        return "study a trace"
    cluster = row.request["cluster"]
    sought = {"advise": "advice", "front": "sends against imbalance"}.get(row.kind) or wanted(row)
    return f"{cluster['num_nodes']} × {cluster.get('gpus_per_node') or 'any'} GPUs, {sought}"
