"""Answers that the search asks for again and again: what if an expert were on these nodes? (numba)

Few moves are accepted, so between two that change an expert's sets the same questions come many times. Answers are
kept in a table by expert and node mask; an answer is good until a set of the expert changes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from placement.solvers.annealing.anneal_common import Floats, Incidence, Ints, Masks
from placement.solvers.annealing.replica_loads import estimate_shares
from placement.solvers.annealing.replica_sends import Hosts, Rest, change_of
from placement.support.kernel import inner_kernel

PLACES = 61  # masks of an expert that are kept; a prime: up to five nodes all masks have places of their own


class Answers(NamedTuple):
    """For expert e and the mask m at place m % PLACES.

    mask_EA    uint64 [E, A], whose answer is there
    asked_EA   int64 [E, A], `version_E` when it was computed; -1: never
    change_EA  int64 [E, A], change of N * sends over all sets if only this expert got the mask
    share_EAN  float64 [E, A, N], its nodes' estimated shares of its load
    version_E  int64 [E], counts the accepted moves that changed a set of the expert
    """

    mask_EA: Masks
    asked_EA: Ints
    change_EA: Ints
    share_EAN: Floats
    version_E: Ints


def no_answers(num_experts: int, num_nodes: int) -> Answers:
    """Room for answers, none of which was asked."""
    return Answers(
        np.zeros((num_experts, PLACES), dtype=np.uint64),
        np.full((num_experts, PLACES), -1, dtype=np.int64),
        np.zeros((num_experts, PLACES), dtype=np.int64),
        np.empty((num_experts, PLACES, num_nodes)),  # most of it is never written: zeros would cost time
        np.zeros(num_experts, dtype=np.int64),
    )


@inner_kernel
def place_of_answer(
    u: int, host: np.uint64, answers: Answers, inc: Incidence, rest: Rest, sends_U: Ints, hosts: Hosts
) -> int:
    """Where the answer for (u, host) is; it is computed if it is missing or stale."""
    a = np.int64(host % np.uint64(PLACES))
    if answers.asked_EA[u, a] != answers.version_E[u] or answers.mask_EA[u, a] != host:
        answers.asked_EA[u, a] = answers.version_E[u]
        answers.mask_EA[u, a] = host
        answers.change_EA[u, a] = change_of(u, host, inc, rest, sends_U, hosts)
        estimate_shares(u, host, inc, rest, hosts.num_nodes, answers.share_EAN[u, a])
    return a  # type: ignore[return-value]
