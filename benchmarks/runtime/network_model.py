"""The step-time model beside what `network.py` measured: fitted to some maps, asked about the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from network_plan import Way

from placement import Evaluation
from placement.cost.calibration.fit import Fit, fit_unit_times
from placement.cost.step_time import Term, unit_times_us

Floats = npt.NDArray[np.float64]
NEAR = 0.05  # an error of a step that is small
COMPUTING = (Term.COMPUTE, Term.MEMORY)  # no part of dispatch and combine


def model_lines(ways: Mapping[str, Way], comm_us: Mapping[str, Sequence[float]], mbit: float) -> list[str]:
    """One row a way: measured and modelled time of its steps, each of all layers.

    Args:
        comm_us: What dispatch and combine of every step took, microseconds.
        mbit: Mbit/s of every node's link; the first modelled time is the busiest direction's at that speed.
    """
    counts = {name: np.stack([counts_of(one) for one in way.steps]) for name, way in ways.items()}
    times = {name: np.array(comm_us[name]) for name in ways}
    cluster = next(iter(ways.values())).predicted.cluster
    stated_us = np.zeros(len(Term))
    stated_us[Term.NETWORK] = (cluster.dispatch_bytes + cluster.combine_bytes) * 8 / (mbit / cluster.gpus_per_node)
    whole = _fit(counts, times, list(ways), stated_us)
    halves = [list(ways)[0::2], list(ways)[1::2]]
    of_others = {name: _fit(counts, times, halves[name in halves[0]], stated_us) for name in ways}
    lines = [
        "| way | comm, s | busiest direction alone, s | modelled, s | largest error of a step | "
        "fitted to other ways, s | error |",
        "|---|---|---|---|---|---|---|",
    ]
    errors = []
    for name in ways:
        total = times[name].sum()
        error_S = counts[name] @ whole.unit_us / times[name] - 1
        errors.append(np.abs(error_S))
        foretold = (counts[name] @ of_others[name].unit_us).sum()
        seconds = [total, (counts[name] @ stated_us).sum(), (counts[name] @ whole.unit_us).sum()]
        cells = [f"{one / 1e6:.2f}" for one in seconds]
        lines.append(
            f"| {name} | {' | '.join(cells)} | {np.abs(error_S).max():.1%} | {foretold / 1e6:.2f} | "
            f"{foretold / total - 1:+.1%} |"
        )
    error = np.concatenate(errors)
    return [*lines, "", _said(whole, stated_us, mbit, error)]


def counts_of(step: Evaluation) -> Floats:
    """Units of each term in a step, all layers together, float64 [6]."""
    cluster = replace(step.cluster, copy_us=1.0, latency_us=1.0)
    times_L6 = replace(step, cluster=cluster).term_times_L6(tokens_per_gpu=1) * (step.num_tokens / cluster.num_ranks)
    times_L6[:, Term.LATENCY] = 1.0
    times_L6[:, COMPUTING] = 0.0
    return np.asarray(times_L6.sum(axis=0) / unit_times_us(cluster))


def _fit(counts: Mapping[str, Floats], times: Mapping[str, Floats], names: Sequence[str], given_us: Floats) -> Fit:
    count_R6, time_R = (np.concatenate([by[name] for name in names]) for by in (counts, times))
    return fit_unit_times(count_R6, time_R, given_us)


def _said(fit: Fit, stated_us: Floats, mbit: float, error: Floats) -> str:
    found = fit.unit_us
    rate = f"{mbit * stated_us[Term.NETWORK] / found[Term.NETWORK]:.0f} Mbit/s" if found[Term.NETWORK] else "no link"
    return (
        f"Fitted to all ways: {rate}, copy {found[Term.PACKING]:.1f} us, assignment {found[Term.FAN_OUT]:.2f} us, "
        f"layer {found[Term.LATENCY] / 1e3:.1f} ms. Of {len(error)} steps {np.mean(error <= NEAR):.0%} are within "
        f"{NEAR:.0%}, the median is {np.median(error):.1%} off, nine of ten at most {np.quantile(error, 0.9):.1%}."
    )
