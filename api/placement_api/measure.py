"""Every answer counted and timed for `/metrics`."""

from __future__ import annotations

import time

from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from placement_api.metrics import Metrics

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")  # of others there may be any number


class Measure:
    """Around everything else, so that refusals are counted too."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._series: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500

        async def noted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted_send)
        finally:
            count, seconds = self._of(scope, status)
            count.inc()
            seconds.observe(time.perf_counter() - began)

    def _of(self, scope: Scope, status: int) -> tuple[Counter, Histogram]:
        """Series of a route: to look them up by labels costs more than to count."""
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in METHODS else "other"
        known = self._series.get((method, route, status))
        if known is None:
            metrics: Metrics = scope["app"].state.service.metrics
            known = metrics.requests.labels(method, route, str(status)), metrics.seconds.labels(route)
            self._series[method, route, status] = known
        return known
