"""A model of the time that the MoE layers of one step take: what evaluation, steps, advice and the search go by.

In a layer the busiest direction of a node's network is through, GPUs have packed their copies of tokens, the busiest
GPU has got its tokens over the links of its node, and has multiplied them: by a roofline, either the products last
longest, or the reading of the weights of those experts that have a token. These follow one another and all others wait;
launches and latencies come on top. The figure compares maps. `placement calibrate` fits it to measured times.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster

Floats = npt.NDArray[np.float64]
STEP_TOKENS_PER_GPU = 256


class Term(IntEnum):
    """Places in what `term_times_us` gives."""

    NETWORK, PACKING, FAN_OUT, COMPUTE, MEMORY, LATENCY = range(6)

    @property
    def title(self) -> str:
        """As figures name the term."""
        return self.name.lower()


class Work(NamedTuple):
    """What layers have to do in a step, arrays of one shape.

    Attributes:
        busiest: Copies through the busiest direction of a node's network for each GPU of the node, weighed by link.
        copies: Copies that a GPU sends in the mean, weighed by link.
        load: Assignments of the most loaded GPU, each GPU's divided by its relative speed.
        experts: Experts with a token on the GPU that has most of them, each GPU's divided by its relative speed.
    """

    busiest: Floats
    copies: Floats
    load: Floats
    experts: Floats


def unit_times_us(cluster: Cluster) -> Floats:
    """What a unit of each term takes: a copy, a copy, an assignment, an assignment, an expert, a layer; float64 [6].

    One token in one expert is two operations for each weight: 16 * expert_bytes / weight_bits.
    """
    copy_bits = (cluster.dispatch_bytes + cluster.combine_bytes) * 8
    return np.array(
        [
            copy_bits / (cluster.inter_gbps * 1e3),
            cluster.copy_us,
            copy_bits / (cluster.intra_gbps * 1e3),
            16 * cluster.expert_bytes / cluster.weight_bits / (cluster.gpu_tflops * 1e6),
            8 * cluster.expert_bytes / (cluster.memory_gbps * 1e3),
            cluster.latency_us,
        ]
    )


def unit_counts(work: Work, unit_us: Floats) -> Floats:
    """How many of each unit count, float64 [..., 6]: products where they last longer than the weights, else these."""
    by_compute = work.load * unit_us[Term.COMPUTE] >= work.experts * unit_us[Term.MEMORY]
    compute, memory = np.where(by_compute, work.load, 0.0), np.where(by_compute, 0.0, work.experts)
    return np.stack([work.busiest, work.copies, work.load, compute, memory, np.ones_like(work.load)], axis=-1)


def term_times_us(cluster: Cluster, work: Work) -> Floats:
    """Microseconds of each term, float64 [..., 6] by `Term`; their sum is the time of the layer."""
    unit_us = unit_times_us(cluster)
    return np.asarray(unit_counts(work, unit_us) * unit_us)


def governing(times_6: Floats) -> str | None:
    """The term that takes most of a layer's or step's time; None where times are unknown."""
    return Term(int(times_6.argmax())).title if np.isfinite(times_6).all() else None


def active_experts(visits_LP: Floats, cluster: Cluster, tokens_per_gpu: int) -> Floats:
    """Experts with a token on the GPU that has most, over its relative speed, in the mean over steps: float64 [L].

    Args:
        visits_LP: Assignments that each slot serves for a token of the trace, float64 [L, P].
    """
    step_tokens = tokens_per_gpu * cluster.num_ranks
    balanced = cluster.balanced()  # GPUs that share load share the reading of the weights
    idle_LP = np.clip(1.0 - visits_LP, 0.0, 1.0) ** step_tokens
    active_LG = (1.0 - idle_LP).reshape(len(visits_LP), balanced.num_ranks, -1).sum(axis=2)
    return np.asarray((active_LG / balanced.speed_G()).max(axis=1) * balanced.num_ranks / cluster.num_ranks)


def balance_in_sends(cluster: Cluster, assignments: float) -> float:
    """How many sends per token take as long as one unit of rank imbalance: what makes the objective a time.

    It is the slope of the modelled time at even load in a step of STEP_TOKENS_PER_GPU tokens, all experts with tokens:
    where reading the weights lasts longer than the products, more load on a GPU costs nothing but its way there.

    Args:
        assignments: Assignments of a token, mean over tokens.
    """
    sent, load = np.array(float(STEP_TOKENS_PER_GPU)), np.array(assignments * STEP_TOKENS_PER_GPU)
    work = Work(busiest=sent, copies=sent, load=load, experts=np.array(float(cluster.slots_per_gpu)))
    times_us = term_times_us(cluster, work)
    load_us = times_us[Term.FAN_OUT] + times_us[Term.COMPUTE]
    return float(load_us / (times_us[Term.NETWORK] + times_us[Term.PACKING]))
