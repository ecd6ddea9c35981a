"""Prometheus series of the proxy; nothing of what requests say is in them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.03, 0.1, 0.3, 1.0)


class Metrics:
    """Counters by what happened; see docs/proxy.md."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._gauges: dict[str, Gauge] = {}
        self.answers = self._counter("placement_route_answers", "Answers that clients got, by status", "status")
        self.homes = self._counter("placement_route_homes", "Requests by home node and what told it", "node", "why")
        self.unchanged = self._counter("placement_route_unchanged", "Requests passed on as they came, by why", "why")
        self.failures = self._counter("placement_route_backend_failures", "By backend and kind", "backend", "kind")
        self.elsewhere = self._counter("placement_route_elsewhere", "Requests whose home's backend was away")
        self.cancelled = self._counter("placement_route_cancelled", "Requests whose client went away")
        self.lengths = self._counter("placement_route_lengths", "Whole answers, by what told their length", "told")
        self.swaps = self._counter("placement_route_swaps", "Changes of the files while running", "result")
        self.seconds = Histogram(
            "placement_route_decision_seconds",
            "From the last byte of a request to its home",
            buckets=SECONDS,
            registry=self.registry,
        )

    def _counter(self, name: str, told: str, *labels: str) -> Counter:
        return Counter(name, told, labels, registry=self.registry)

    def watch(self, name: str, told: str, read: Callable[[], float], **labels: str) -> None:
        """A gauge that is read when somebody asks."""
        gauge = self._gauges.get(name) or Gauge(name, told, list(labels), registry=self.registry)
        self._gauges[name] = gauge
        (gauge.labels(**labels) if labels else gauge).set_function(read)

    def watch_loads(self, num_nodes: int, load_N: Callable[[], npt.NDArray[np.float64]]) -> None:
        """A gauge for each node."""
        told = "Tokens of the requests at this moment, their answers as foretold"
        for node in range(num_nodes):
            read = partial(lambda node: float(load_N()[node]), node)
            self.watch("placement_route_tokens_in_flight", told, read, node=str(node))

    def text(self) -> bytes:
        """All series, as Prometheus reads them."""
        return generate_latest(self.registry)
