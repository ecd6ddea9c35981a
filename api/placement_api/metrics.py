"""Prometheus series of this process, and of the jobs in the database."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "placement_requests", "Answers by route and status", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram("placement_request_seconds", "Seconds to answer", ["route"], registry=self.registry)
        self.jobs = Gauge("placement_jobs", "Jobs by state", ["state"], registry=self.registry)

    def text(self, jobs_by_state: dict[str, int]) -> bytes:
        for state, number in jobs_by_state.items():
            self.jobs.labels(state).set(number)
        return generate_latest(self.registry)


def layer_series(placement: str, layers: list[dict[str, object]]) -> bytes:
    """Objective and bound of every layer of a placement; only for whoever asks, because there are many."""
    registry = CollectorRegistry()
    for name in ("objective", "bound"):
        gauge = Gauge(f"placement_layer_{name}", f"{name} of a layer", ["placement", "layer"], registry=registry)
        for layer in layers:
            if isinstance(value := layer[name], (int, float)):
                gauge.labels(placement, str(layer["layer_id"])).set(value)
    return generate_latest(registry)
