"""`/names`, `/names/{name}`: what is published, where aliases point, and what happened to them."""

from __future__ import annotations

from fastapi import APIRouter, Response
from sqlalchemy import select

from placement_api.pages.render import page
from placement_api.routes import Here, Reader, names
from placement_api.routes.page_route import PageRoute
from placement_api.service import Service
from placement_api.store.tables import DONE, JobRow, VersionRow

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/names")
def names_page(here: Here, reader: Reader) -> Response:
    return page("names", names=names.list_names(here, reader))


@router.get("/names/{name:path}")
def name_page(here: Here, reader: Reader, name: str) -> Response:
    detail = names.detail(here, reader, name)
    last = {move.alias: move for move in reversed(detail.history)}
    there = _there(here, [one.placement for one in detail.versions if one.placement])
    _, held, _ = here.names.of(name)
    back = {move.alias for move in held if len(move.held) > 1}
    return page("name", detail=detail, last=last, there=there, back=back, may_promote=reader.may("promote"))


def published_of(here: Service, placement: str) -> list[tuple[str, int, list[str]]]:
    """(name, version, aliases that point at it) of what was published of a placement."""
    with here.database.reading() as session:
        wanted = select(VersionRow.name, VersionRow.version).where(VersionRow.placement == placement)
        rows = session.execute(wanted.order_by(VersionRow.name, VersionRow.version)).all()
    held = {name: aliases for name, _, aliases in here.names.all()} if rows else {}
    return [
        (name, version, sorted(alias for alias, at in held.get(name, {}).items() if at == version))
        for name, version in rows
    ]


def _there(here: Service, ids: list[str]) -> set[str]:
    """Those of these placements that have not been deleted."""
    with here.database.reading() as session:
        return set(session.scalars(select(JobRow.id).where(JobRow.id.in_(ids), JobRow.state == DONE)))
