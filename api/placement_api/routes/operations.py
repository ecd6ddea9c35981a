"""`/healthz`, `/readyz`, `/metrics`: for whoever runs the service."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel
from sqlalchemy import func, select

from placement.documents.placement import load_placement
from placement_api.description import answers
from placement_api.metrics import CONTENT_TYPE, layer_series
from placement_api.problems import faults
from placement_api.routes import Here, Scraper
from placement_api.routes.jobs import file_of
from placement_api.routes.placements import find_placement
from placement_api.store.tables import QUEUED, STATES, JobRow

router = APIRouter(tags=["operations"])


class Health(BaseModel):
    status: str = "ok"


@router.get("/healthz")
async def healthz() -> Health:
    """The process answers, also while all its threads wait for a database."""
    return Health()


@router.get("/readyz", responses=faults(503))
async def readyz(here: Here) -> Health:
    """It can work: every table can be read, the store written, and jobs are looked after. At most 2 s old."""
    await here.readiness.check()
    return Health()


@router.get("/metrics", responses={**answers("text/plain"), **faults(404)}, response_class=Response)
def metrics(
    here: Here,
    _: Scraper,
    layers_of: Annotated[str | None, Query(description="Id of a placement: its layers too")] = None,
) -> Response:
    """Series for Prometheus."""
    with here.database.reading() as session:
        found = session.execute(select(JobRow.state, func.count()).group_by(JobRow.state)).all()
        oldest = session.scalar(select(func.min(JobRow.created)).where(JobRow.state == QUEUED))
    by_state = {state: 0 for state in STATES} | {state: number for state, number in found}
    text = here.metrics.text(by_state, 0.0 if oldest is None else max(time.time() - oldest, 0.0))
    if layers_of is not None:
        row = find_placement(here, layers_of)
        file = load_placement(here.blobs.path(file_of(row, "placement")))[1]
        text += layer_series(row.id, [layer.model_dump() for layer in file.layers or []])
    return Response(text, media_type=CONTENT_TYPE)
