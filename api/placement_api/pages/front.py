"""Placements as points of sends against imbalance, and the way to more of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import select

from placement.cost.transports import TRANSPORTS
from placement.report.solution.solution_charts import (
    Spot,
    draw_spots,
    sends_against_imbalance,
    series_of,
    shape_of,
)
from placement_api.pages.looks import REFERENCE, wanted
from placement_api.service import Service
from placement_api.store.tables import DONE, OPEN, JobRow

MOST = 500  # placements that are looked through
WEIGHTS = (0.0, 0.25, 0.5, 1.0, 3.0, 12.0)  # every other one of `placement front`


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """best: no other point has both fewer sends and less imbalance."""

    name: str
    link: str
    series: str
    shape: str
    sends: float
    imbalance: float
    step_time_us: float
    is_this: bool = False
    best: bool = False


def related(here: Service, row: JobRow, states: Sequence[str] = (DONE,)) -> list[JobRow]:
    """Solves of the same traces, held-out share and cluster, this one among them, newest first."""
    wanted_jobs = select(JobRow).where(JobRow.kind == "solve", JobRow.state.in_(states))
    with here.database.reading() as session:
        rows = session.scalars(wanted_jobs.order_by(JobRow.created.desc(), JobRow.id).limit(MOST)).all()
    return [other for other in rows if _problem(other) == _problem(row)]


def open_count(here: Service, row: JobRow) -> int:
    return len(related(here, row, OPEN))


def more(row: JobRow) -> list[dict[str, Any]]:
    """Requests for other prices of imbalance; none where nothing is traded."""
    options = row.request["options"]
    if options["objective"] != "locality" or TRANSPORTS.make(options["transport"]).everywhere:
        return []
    if row.request["current"] is not None or row.request["group"] is not None:
        return []
    plain = {"bound": "none", "max_imbalance": None, "max_node_imbalance": None}
    return [
        row.request | {"options": options | plain | {"balance_weight": weight}, "report": False}
        for weight in WEIGHTS
        if weight != options["balance_weight"]
    ]


def points(
    rows: Sequence[JobRow], this: str | None, marks: dict[str, tuple[str, str, str]] | None = None
) -> list[Point]:
    """The baselines once, then every placement; those whose sends are unknown are left out.

    marks: id -> (name, series, shape) where they are not told apart by what was asked for
    """
    rows = [row for row in rows if row.summary["maps"][row.summary["result"]]["sends_per_token"] is not None]
    if not rows:
        return []
    baselines = rows[0].summary["maps"] if all(_problem(row) == _problem(rows[0]) for row in rows) else {}
    found = [
        _point(baselines[name], name=name, link="", series=series_of(name), shape=shape_of(name))
        for name in ("linear", REFERENCE)
        if name in baselines
    ]
    for row in rows:
        summary = row.summary
        name = wanted(row) + (", this one" if row.id == this else "")
        name, series, shape = (marks or {}).get(row.id, (name, "s2" if row.id == this else "s3", "diamond"))
        mine = summary["maps"][summary["result"]]
        found.append(
            _point(mine, name=name, link=f"/placements/{row.id}", is_this=row.id == this, series=series, shape=shape)
        )
    return [_marked(point, found) for point in sorted(found, key=lambda point: (point.sends, point.imbalance))]


def chart(points: Sequence[Point]) -> str:
    """Sends to the right, imbalance up; a line joins the best."""
    spots = [
        Spot(
            *(point.name, point.series, point.shape, point.sends, point.imbalance),
            radius=8 if point.is_this else 5,
            link="" if point.is_this else point.link,
        )
        for point in points
    ]
    drawn = sends_against_imbalance(spots)
    best = [point for point in points if point.best]
    drawn.line("s3", [point.sends for point in best], [point.imbalance for point in best])
    draw_spots(drawn, spots)
    said = f"{len(points)} maps; {len(best)} are not beaten in both."
    return drawn.svg(f"Scatter of sends per token against rank imbalance: {said} The table has all figures.")


def measured_on(row: JobRow) -> tuple[Any, ...]:
    """What tells the requests that were measured: with homes it is only the rest of each one that was held out."""
    request = row.request
    group = request["group"] and request["group"]["home_from"]
    return (
        tuple(sorted(request["traces"])),
        request["holdout"],
        request["options"]["seed"],
        group,
        request["group"] is None,
    )


def _problem(row: JobRow) -> tuple[Any, ...]:
    """What figures depend on beside the map."""
    options = row.request["options"]
    return *measured_on(row), row.request["cluster"], options["transport"], options["replica_choice"]


def _point(summary: dict[str, Any], **named: Any) -> Point:
    return Point(
        sends=summary["sends_per_token"],
        imbalance=summary["rank_imbalance"]["mean"],
        step_time_us=summary["step_time_us"],
        **named,
    )


def _marked(point: Point, all_points: Sequence[Point]) -> Point:
    beaten = any(
        other.sends <= point.sends
        and other.imbalance <= point.imbalance
        and (other.sends, other.imbalance) != (point.sends, point.imbalance)
        for other in all_points
    )
    return replace(point, best=not beaten)


def front_rows(document: dict[str, Any]) -> dict[str, Any]:
    """What the page of a front shows of `front.json`: its rows, and which requests were measured.

    A row has a name, sends, mean and largest rank imbalance, the file of its map ("" of a baseline), and whether it was
    chosen for the price that was asked for.
    """
    side = "train" if document["points"][0]["held_out"] is None else "held_out"
    rows = []
    for one in (*document["baselines"], *document["points"]):
        weight = one.get("weight", document["balance_weight"])
        name = one.get("name") or (f"cap {document['max_imbalance']:g}" if weight is None else f"{weight:g}")
        figures, file = one[side], one.get("file", "")
        imbalance = figures["rank_imbalance"]
        chosen = bool(file) and file == document["chosen"]
        rows.append((name, figures["sends_per_token"], imbalance["mean"], imbalance["max"], file, chosen))
    return {"rows": rows, "held_out": side == "held_out"}
