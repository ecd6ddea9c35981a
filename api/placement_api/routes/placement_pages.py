"""`/placements/{id}`, `.../moves`, `/compare`: placements to look at."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import RedirectResponse

from placement.errors import PlacementError
from placement.exporters import EXPORTERS, get_exporter
from placement.report.solution.solution_charts import heatmaps
from placement_api.pages import charts, front
from placement_api.pages.comparison import MOST, compare, moves_fit
from placement_api.pages.looks import Look, look, size, wanted
from placement_api.pages.moves import moves_page
from placement_api.pages.render import page
from placement_api.pages.start import engine_of, start_of
from placement_api.problems import Problem, from_library
from placement_api.routes import Here, Reader, Solver, maps, placements, traces
from placement_api.routes.names_pages import published_of
from placement_api.routes.page_route import PageRoute
from placement_api.service import Service

router = APIRouter(include_in_schema=False, route_class=PageRoute)
SHOWN = 200


@router.get("/placements/{placement}")
def placement_page(
    here: Here,
    reader: Reader,
    placement: str,
    layer: int | None = None,
    engine: Annotated[str | None, Query(max_length=40)] = None,
) -> Response:
    shown = look(here.blobs, placements.find_placement(here, placement))
    ids = shown.placement.model.layer_ids
    position = ids.index(layer) if layer in ids else 0
    waiting = front.open_count(
        here, shown.row
    )  # before those that are done: a job that ends meanwhile is in one of both
    related = front.related(here, shown.row)
    known = {row.request["options"]["balance_weight"] for row in related}
    points = front.points(related, shown.row.id)
    from_trace = traces.readers(here, shown.row.request["traces"])
    chosen = engine or engine_of([shown.file.engine(), *from_trace])
    return page(
        "placement",
        look=shown,
        row=shown.row,
        named=traces.names(here, shown.row.request["traces"]),
        size=size(shown.summary),
        wanted=wanted(shown.row),
        layers=charts.layer_charts(shown),
        heatmaps=shown.figures and heatmaps(shown.figures.rank_load, ids, shown.placement),
        experts=charts.experts_of(shown, position),
        position=position,
        classes=charts.CLASS_LABELS,
        points=points,
        front=front.chart(points) if points else None,
        more=sum(request["options"]["balance_weight"] not in known for request in front.more(shown.row)),
        waiting=waiting,
        grouping=_grouping(here, shown),
        others=_others(here, shown),
        published=published_of(here, placement),
        names=[name for name, _, _ in here.names.all()],
        engines=list(EXPORTERS),
        engine=chosen,
        asked=engine is not None,
        from_trace=engine is None and chosen is not None and shown.file.engine() is None,
        **_start(here, reader, placement, chosen),
    )


@router.post("/placements/{placement}/front")
def fill_front(here: Here, solver: Solver, placement: str) -> Response:
    """Solve the same at other prices of imbalance: the points between few sends and even load."""
    row = placements.find_placement(here, placement)
    for request in front.more(row):
        placements.check(here, request)
        here.jobs.submit("solve", request, caller=solver.id)
    return RedirectResponse(f"/placements/{row.id}#front", status_code=303)


@router.get("/placements/{placement}/moves")
def moves(here: Here, _: Reader, placement: str, to: str) -> Response:
    one, other = (look(here.blobs, placements.find_placement(here, name)) for name in (placement, to))
    return page(
        "moves",
        old=one,
        new=other,
        old_name=wanted(one.row),
        new_name=wanted(other.row),
        moves=moves_page(maps.plan_of(here, placement, to)),
    )


@router.get("/compare")
def comparison(here: Here, _: Reader, id: Annotated[list[str] | None, Query()] = None) -> Response:
    chosen = list(dict.fromkeys(id or []))
    if not 2 <= len(chosen) <= MOST:
        raise Problem(422, f"{len(chosen)} placements are chosen", f"choose 2 to {MOST} of the list at /")
    looks = [look(here.blobs, placements.find_placement(here, name)) for name in chosen]
    compared = compare(looks)
    marks = {one.look.row.id: (f"{one.letter}: {one.wanted}", one.series, one.shape) for one in compared.columns}
    points = front.points([one.row for one in looks], None, marks)
    return page(
        "compare",
        compared=compared,
        points=points,
        front=front.chart(points) if points and compared.same_input else None,
        moves={one.letter for one in compared.columns if moves_fit(looks[0], one.look)},
    )


def _start(here: Service, reader: Reader, placement: str, engine: str | None) -> dict[str, Any]:
    """How to start the engine, or why its file cannot be written."""
    if engine is None:
        return {"start": None, "problem": None}
    try:
        hints = placements.hints(here, reader, placement, engine)
    except PlacementError as error:
        return {"start": None, "problem": from_library(error).body}
    name = placements.file_name(placement, get_exporter(engine).suffixes[0])
    return {"start": start_of(hints, name), "problem": None}


def _grouping(here: Service, shown: Look) -> dict[str, Any] | None:
    if "grouping" not in shown.row.files:
        return None
    document: dict[str, Any] = json.loads(here.blobs.get(shown.row.files["grouping"]))
    return document


def _others(here: Service, shown: Look) -> list[tuple[str, str, float]]:
    """(id, what was asked for, when) of the placements to which slots can be moved."""
    keys = ("layers", "experts", "num_nodes", "gpus_per_node", "slots_per_gpu")
    return [
        (row.id, f"{row.summary['model']}: {wanted(row)}", row.created)
        for row in placements.rows(here, limit=SHOWN)
        if row.id != shown.row.id and all(row.summary[key] == shown.summary[key] for key in keys)
    ]
