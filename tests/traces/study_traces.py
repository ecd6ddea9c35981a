"""Traces with planted domains, and the study of a trace."""

from __future__ import annotations

import json
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np

from placement.analysis.info import Study, StudyOptions, describe
from placement.traces.trace import Trace, open_trace
from placement.workload.counts_file import ExpertCounts

Array = np.ndarray


def planted(folder: Path, write_trace: Any, *, requests: int = 60, domains: int = 3, length: int = 40) -> Any:
    """Requests of `domains` domains that like experts of their own, 2 layers of 12 experts, top-3."""
    rng = np.random.default_rng(1)
    domain_Q = np.arange(requests) % domains
    likes_DLE = rng.normal(0, 2, (domains, 2, 12))
    request_T = np.repeat(np.arange(requests), length)
    logits = likes_DLE[domain_Q[request_T]].transpose(1, 0, 2) + rng.gumbel(size=(2, len(request_T), 12))
    ids_LTK = np.argsort(-logits, axis=2)[:, :, :3]
    trace = write_trace(folder, ids_LTK=ids_LTK, request_T=request_T, num_experts=12, requests=requests)
    relabel(trace, [f"d{domain}" for domain in domain_Q.tolist()])
    return trace


def relabel(trace: Any, labels: list[str | None]) -> None:
    entries = [{"id": f"r{q}"} | ({} if label is None else {"domain": label}) for q, label in enumerate(labels)]
    (trace.folder / "trace.json").write_text(json.dumps(trace.manifest | {"requests": entries}))


def study_of(trace: Any, **options: Any) -> Study:
    return studied(open_trace(trace.folder), **options)


def studied(source: Trace | ExpertCounts, executor: Executor | None = None, **options: Any) -> Study:
    study = describe(source, executor, study=StudyOptions(**options)).study
    assert study is not None
    return study


def first_part(trace: Any) -> Array:
    """The first quarter of each request, counted by hand, bool [T]."""
    span_Q = np.bincount(trace.request_T)
    return trace.position_T < span_Q[trace.request_T] // 4
