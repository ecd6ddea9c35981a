"""A model of the time that the MoE layers of one step take."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster

STEP_TOKENS_PER_GPU = 256


def step_time_us(
    cluster: Cluster,
    *,
    assignments_L: npt.NDArray[np.float64],
    sends_L: npt.NDArray[np.float64],
    rank_imbalance_L: npt.NDArray[np.float64],
    tokens_per_gpu: int = STEP_TOKENS_PER_GPU,
) -> float:
    """Microseconds of a step in which every GPU brings `tokens_per_gpu` tokens: those of `layer_times_us` together."""
    times_L = layer_times_us(cluster, assignments_L, sends_L, rank_imbalance_L, tokens_per_gpu)
    return float(times_L.sum())


def layer_times_us(
    cluster: Cluster,
    assignments: npt.NDArray[np.float64],
    sends: npt.NDArray[np.float64],
    rank_imbalance: npt.NDArray[np.float64],
    tokens_per_gpu: int,
) -> npt.NDArray[np.float64]:
    """Microseconds of one MoE layer each, of arrays of one shape.

    Per layer, with B = tokens_per_gpu, s = sends of the transport per token, each weighed by its link, K = assignments
    of a token, I = rank imbalance:

        network  B * s * (dispatch_bytes + combine_bytes) * 8 / inter_gbps
        NVLink   B * K * (dispatch_bytes + combine_bytes) * 8 / intra_gbps   (fan-out within nodes, an upper estimate)
        experts  B * K * I * expert_flops / gpu_tflops,  expert_flops = 2 * weights = 16 * expert_bytes / weight_bits

    The three follow one another and the most loaded GPU makes all others wait. No latency, no overlap: the figure
    compares maps; it does not predict a wall clock.
    """
    copy_bits = (cluster.dispatch_bytes + cluster.combine_bytes) * 8
    network_us = tokens_per_gpu * sends * copy_bits / (cluster.inter_gbps * 1e3)
    nvlink_us = tokens_per_gpu * assignments * copy_bits / (cluster.intra_gbps * 1e3)
    load = tokens_per_gpu * assignments * rank_imbalance
    experts_us = load * _expert_flops(cluster) / (cluster.gpu_tflops * 1e6)
    return network_us + nvlink_us + experts_us


def balance_in_sends(cluster: Cluster, assignments: float) -> float:
    """How many sends per token take as long as one unit of rank imbalance: what makes the objective a time.

    assignments  of a token, mean over tokens
    """
    send_us = (cluster.dispatch_bytes + cluster.combine_bytes) * 8 / (cluster.inter_gbps * 1e3)
    return assignments * _expert_flops(cluster) / (cluster.gpu_tflops * 1e6) / send_us


def _expert_flops(cluster: Cluster) -> float:
    """Operations of one token in one expert: two for each weight."""
    return 16 * cluster.expert_bytes / cluster.weight_bits
