"""The paths. Each parses, calls the library or a job, and answers."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from placement_api.service import Service
from placement_api.tokens import FROM_MEMORY, Caller, allow


async def service_of(request: Request) -> Service:  # async: others are run in a thread
    service: Service = request.app.state.service
    return service


Here = Annotated[Service, Depends(service_of)]
Reader = Annotated[Caller, Depends(allow("read"))]
Frequent = Annotated[Caller, Depends(allow("read", price=FROM_MEMORY))]  # of what is answered from memory
Solver = Annotated[Caller, Depends(allow("solve"))]
Promoter = Annotated[Caller, Depends(allow("promote"))]
Scraper = Annotated[Caller, Depends(allow("metrics"))]
Admin = Annotated[Caller, Depends(allow("admin"))]
