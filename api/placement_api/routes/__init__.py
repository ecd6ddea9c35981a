"""The paths. Each parses, calls the library or a job, and answers."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from placement_api.service import Service
from placement_api.tokens import Caller, allow


async def service_of(request: Request) -> Service:  # async: others are run in a thread
    service: Service = request.app.state.service
    return service


Here = Annotated[Service, Depends(service_of)]
Reader = Annotated[Caller, Depends(allow("read"))]
Solver = Annotated[Caller, Depends(allow("solve"))]
Admin = Annotated[Caller, Depends(allow("admin"))]
