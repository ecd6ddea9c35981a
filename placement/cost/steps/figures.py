"""The figures of steps: what each says, and how it comes of what `cost_steps` writes of a layer."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.cost.step_time import layer_times_us
from placement.cost.steps.kernel_steps import ASSIGNMENTS, BUSIEST_GPU, BUSIEST_LINK, SENDS
from placement.cost.steps.spread import OverSteps


class Column(IntEnum):
    """Places of the figures in `StepFigures` and in what `columns_of` gives."""

    BUSIEST_GPU, BUSIEST_LINK, BUSIEST_SENDS, SENDS, STEP_US = range(5)


class StepFigures(NamedTuple):
    """Of a step each is the mean over layers, but `step_us`.

    Attributes:
        busiest_gpu: Load of the most loaded rank over the mean rank, each load divided by the rank's relative speed.
        busiest_link: Copies into or out of the node that has most, each weighed by its link, over the mean node.
        busiest_sends: Sends times that, layer by layer.
        sends: What the transport sends per token, each copy weighed by its link.
        step_us: Modelled time of all MoE layers, microseconds: `placement.cost.step_time` of the step's sends and of
            its busiest GPU.
    """

    busiest_gpu: OverSteps
    busiest_link: OverSteps
    busiest_sends: OverSteps
    sends: OverSteps
    step_us: OverSteps

    def document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {name: {"mean": round(over.mean, 6), "p99": round(over.p99, 6)} for name, over in self._asdict().items()}


def columns_of(figure_SC: npt.NDArray[np.float64], cluster: Cluster, tokens_per_gpu: int) -> npt.NDArray[np.float64]:
    """The figures by `Column`, float64 [S, 5], of what `cost_steps` writes of one layer; of `step_us` its part."""
    step_tokens = tokens_per_gpu * cluster.num_ranks
    sends_S, gpu_S, link_S = figure_SC[:, SENDS], figure_SC[:, BUSIEST_GPU], figure_SC[:, BUSIEST_LINK]
    time_S = layer_times_us(cluster, figure_SC[:, ASSIGNMENTS] / step_tokens, sends_S, gpu_S, tokens_per_gpu)
    return np.stack([gpu_S, link_S, sends_S * link_S, sends_S, time_S], axis=1)
