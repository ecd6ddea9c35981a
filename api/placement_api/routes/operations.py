"""`/healthz`, `/readyz`, `/metrics`: for whoever runs the service."""

from __future__ import annotations

import secrets
from functools import partial
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Response
from pydantic import BaseModel
from sqlalchemy import func, select

from placement.core.cluster import Cluster
from placement.core.model import Model
from placement.documents.placement import load_placement
from placement.errors import PlacementError
from placement.pipeline.solve import solve
from placement.solvers.options import Options
from placement.workload.counts_file import ExpertCounts
from placement_api.metrics import CONTENT_TYPE, layer_series
from placement_api.problems import Problem, faults, from_library
from placement_api.routes import Here, Reader
from placement_api.routes.jobs import file_of
from placement_api.routes.placements import find_placement
from placement_api.service import Service
from placement_api.store.tables import STATES, JobRow

router = APIRouter(tags=["operations"])


class Health(BaseModel):
    status: str = "ok"


@router.get("/healthz")
async def healthz() -> Health:
    """The process answers, also while all its threads wait for a database."""
    return Health()


@router.get("/readyz", responses=faults(503))
async def readyz(here: Here) -> Health:
    """It can work: a tiny problem is solved, the database answers, the store can be written."""
    # one look at a time, whoever asks: the path is open to strangers
    return await here.looks.read("ready", partial(_look, here), lambda _: None)


def _look(here: Service) -> Health:
    try:
        here.database.check()
        here.blobs.delete(here.blobs.put(secrets.token_bytes(16)))
    except Exception as error:
        why = from_library(error).body.detail if isinstance(error, PlacementError) else type(error).__name__
        raise Problem(503, f"the store does not answer: {why}", "mend the database or the disk") from error
    count_QLE = np.array([[[5, 1, 1, 1], [1, 5, 1, 1]]], dtype=np.int64)
    model = Model(name="ready", layer_ids=(0, 1), num_experts=4, top_k=1)
    counts = ExpertCounts(model=model, count_QLE=count_QLE, unit=1.0, selected=np.arange(1))
    options = Options(objective="balance", solver="balance", bound="none")
    solve(counts, Cluster.fit(4, num_nodes=2, gpus_per_node=1), options, holdout=0.0, workers=1)
    return Health()


@router.get("/metrics", responses=faults(404), response_class=Response)
def metrics(
    here: Here,
    _: Reader,
    layers_of: Annotated[str | None, Query(description="Id of a placement: its layers too")] = None,
) -> Response:
    """Series for Prometheus."""
    with here.database.reading() as session:
        found = session.execute(select(JobRow.state, func.count()).group_by(JobRow.state)).all()
    text = here.metrics.text({state: 0 for state in STATES} | {state: number for state, number in found})
    if layers_of is not None:
        row = find_placement(here, layers_of)
        file = load_placement(here.blobs.path(file_of(row, "placement")))[1]
        text += layer_series(row.id, [layer.model_dump() for layer in file.layers or []])
    return Response(text, media_type=CONTENT_TYPE)
