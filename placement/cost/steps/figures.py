"""The figures of steps: what each says, and how it comes of what `cost_steps` writes of a layer."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.cost.step_time import Term, Work, term_times_us
from placement.cost.steps.kernel_steps import ASSIGNMENTS, BUSIEST_GPU, BUSIEST_LINK, EXPERTS, SENDS
from placement.cost.steps.spread import OverSteps, Spread

Floats = npt.NDArray[np.float64]


class Column(IntEnum):
    """Places of the figures in `StepFigures` and in what `columns_of` gives.

    Times come last, so that one slice has them; in `columns_of` the time of each `Term` follows that of the step.
    """

    BUSIEST_GPU, BUSIEST_LINK, BUSIEST_SENDS, SENDS, BEST_SPLIT, STEP_US = range(6)


class StepFigures(NamedTuple):
    """Of a step each is the mean over layers, but for times.

    Attributes:
        busiest_gpu: Load of the most loaded rank over the mean rank, each load divided by the rank's relative speed.
        busiest_link: Copies into or out of the node that has most, each weighed by its link, over the mean node.
        busiest_sends: Sends times that, layer by layer.
        sends: What the transport sends per token, each copy weighed by its link.
        best_split: What `busiest_gpu` would be if the step's load were split over the copies of experts as well as can
            be, to within 0.1%; where no expert has copies the same.
        step_us: Modelled time of all MoE layers, microseconds: `placement.cost.step_time` of what the step has to do.
        terms_us: What each `Term` has of that time, mean over steps.
        governed: Share of the steps that each `Term` takes most of.
    """

    busiest_gpu: OverSteps
    busiest_link: OverSteps
    busiest_sends: OverSteps
    sends: OverSteps
    best_split: OverSteps
    step_us: OverSteps
    terms_us: tuple[float, ...]
    governed: tuple[float, ...]

    @property
    def governed_by(self) -> Term:
        """The term that most steps go by."""
        return Term(int(np.argmax(self.governed)))

    def document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            name: {"mean": round(over.mean, 6), "p99": round(over.p99, 6)}
            for name, over in self._asdict().items()
            if isinstance(over, OverSteps)
        } | {
            "terms_us": {term.title: round(self.terms_us[term], 6) for term in Term},
            "governed": {term.title: round(self.governed[term], 6) for term in Term},
        }


def work_of(figure_SC: Floats, cluster: Cluster, tokens_per_gpu: int) -> Work:
    """What the steps of a layer have to do, arrays [S], of what `cost_steps` writes of them."""
    return Work(
        busiest=tokens_per_gpu * figure_SC[:, SENDS] * figure_SC[:, BUSIEST_LINK],
        copies=tokens_per_gpu * figure_SC[:, SENDS],
        load=figure_SC[:, ASSIGNMENTS] / cluster.num_ranks * figure_SC[:, BUSIEST_GPU],
        experts=figure_SC[:, EXPERTS] * cluster.balanced().num_ranks / cluster.num_ranks,
    )


def columns_of(figure_SC: Floats, cluster: Cluster, tokens_per_gpu: int, split_S: Floats | None = None) -> Floats:
    """The figures by `Column`, then the time of each `Term`, float64 [S, 12], of what `cost_steps` writes of one layer;
    times are the layer's part.

    split_S: What `split_steps` writes; None: no expert has copies.
    """
    sends_S, gpu_S, link_S = figure_SC[:, SENDS], figure_SC[:, BUSIEST_GPU], figure_SC[:, BUSIEST_LINK]
    times_S6 = term_times_us(cluster, work_of(figure_SC, cluster, tokens_per_gpu))
    best_S = gpu_S if split_S is None else np.minimum(split_S, gpu_S)
    figures = np.stack([gpu_S, link_S, sends_S * link_S, sends_S, best_S, times_S6.sum(axis=1)], axis=1)
    return np.concatenate([figures, times_S6], axis=1)


class StepsSoFar:
    """Figures of steps that come piece by piece."""

    def __init__(self) -> None:
        self.steps = 0
        self._spreads = [Spread() for _ in Column]
        self._terms_us, self._governed = np.zeros(len(Term)), np.zeros(len(Term))

    def add(self, sum_SC: Floats, num_layers: int) -> None:
        """Further steps, of whose layers these are the sums of what `columns_of` gives."""
        self.steps += len(sum_SC)
        for column, spread in zip(Column, self._spreads, strict=True):
            value_S = sum_SC[:, column]
            spread.add(value_S if column == Column.STEP_US else value_S / num_layers)
        times_S6 = sum_SC[:, len(Column) :]
        self._terms_us += times_S6.sum(axis=0)
        self._governed += np.bincount(times_S6.argmax(axis=1), minlength=len(Term))

    def figures(self) -> StepFigures:
        """Of the steps so far, of which there is one at least."""
        gpu, link, busiest, sends, split, step_us = (spread.over_steps() for spread in self._spreads)
        terms_us, governed = (tuple((one / self.steps).tolist()) for one in (self._terms_us, self._governed))
        return StepFigures(gpu, link, busiest, sends, split, step_us, terms_us, governed)
