"""Prometheus series of this process, of the jobs in the database and of the disk."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
JOB_BUCKETS_S = (0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


class Metrics:
    """`data` is the folder whose disk is told of."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "placement_requests", "Answers by route and status", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram("placement_request_seconds", "Seconds to answer", ["route"], registry=self.registry)
        self.jobs = Gauge("placement_jobs", "Jobs by state", ["state"], registry=self.registry)
        self.queue_s = Gauge(
            "placement_queue_age_seconds", "How long the oldest job that is queued has waited", registry=self.registry
        )
        self.job_seconds = Histogram(
            "placement_job_seconds",
            "Seconds that jobs ran which ended here",
            ["kind", "state"],
            buckets=JOB_BUCKETS_S,
            registry=self.registry,
        )
        self.failures = Counter(
            "placement_job_failures",
            "Jobs that failed here, by type of error",
            ["type"],
            registry=self.registry,
        )
        self.disk = Gauge("placement_disk_bytes", "Of the disk of the data folder", ["what"], registry=self.registry)
        self._series: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answer. To look its series up by labels costs more than to count."""
        known = self._series.get((method, route, status))
        if known is None:
            known = self.requests.labels(method, route, str(status)), self.seconds.labels(route)
            self._series[method, route, status] = known
        known[0].inc()
        known[1].observe(seconds)

    def job_ended(self, kind: str, state: str, seconds: float, error: dict[str, Any] | None) -> None:
        self.job_seconds.labels(kind or "none", state).observe(seconds)
        if error is not None:
            self.failures.labels(str(error.get("type", "about:blank")).rpartition(":")[2]).inc()

    def text(self, jobs_by_state: dict[str, int], queue_s: float) -> bytes:
        """All series; `queue_s` is the age of the oldest job that is queued, in seconds."""
        for state, number in jobs_by_state.items():
            self.jobs.labels(state).set(number)
        self.queue_s.set(queue_s)
        usage = shutil.disk_usage(self.data)
        self.disk.labels("free").set(usage.free)
        self.disk.labels("total").set(usage.total)
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
