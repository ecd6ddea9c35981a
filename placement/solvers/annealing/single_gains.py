"""Tables of what moves of experts with one copy cost, kept up to date (numba): see `anneal_single`.

enter_EX[e, x]  fares of the sets of e that do not touch unit x yet: what they would cost more if e moved there
leave_E[e]      fares of the sets of e that touch e's unit only because of e
"""

from __future__ import annotations

import numpy as np

from placement.solvers.annealing.anneal_common import Bytes, Flags, Floats, Incidence, Ints, members
from placement.support.kernel import inlined_kernel, inner_search_kernel


@inlined_kernel
def nearest_unit(u: int, own: int, enter_EX: Floats) -> int:
    """The other unit where u's sets would cost least more; its own if there is no other."""
    nearest, least = own, np.inf
    for x in range(enter_EX.shape[1]):
        if x != own and enter_EX[u, x] < least:
            nearest, least = x, enter_EX[u, x]
    return nearest


@inner_search_kernel
def fill_gains(
    inc: Incidence,
    fare_HX: Floats,
    unit_E: Ints,
    touch_UX: Bytes,
    enter_EX: Floats,
    leave_E: Floats,
    touched_HX: Ints,
) -> float:
    """Build the tables, and count the tokens of each home that touch each unit; returns the sum of all fares."""
    sets, count = inc.sets_UK, inc.count_U
    for t in range(sets.shape[0]):
        fare_X, size = fare_HX[inc.home_U[t]], members(t, inc)
        for k in range(size):
            touch_UX[t, unit_E[sets[t, k]]] += np.uint8(1)
        for x in range(touch_UX.shape[1]):
            if touch_UX[t, x] > 0:
                touched_HX[inc.home_U[t], x] += count[t]
            else:
                for k in range(size):
                    enter_EX[sets[t, k], x] += count[t] * fare_X[x]
        for k in range(size):
            if touch_UX[t, unit_E[sets[t, k]]] == 1:
                leave_E[sets[t, k]] += count[t] * fare_X[unit_E[sets[t, k]]]
    total = 0.0
    for h in range(fare_HX.shape[0]):
        for x in range(fare_HX.shape[1]):
            total += fare_HX[h, x] * touched_HX[h, x]
    return total


@inner_search_kernel
def move_expert(
    u: int,
    i: int,
    j: int,
    inc: Incidence,
    fare_HX: Floats,
    shared_U: Flags,
    unit_E: Ints,
    touch_UX: Bytes,
    enter_EX: Floats,
    leave_E: Floats,
) -> None:
    """Expert u goes from unit i to j in all its sets but the shared ones."""
    sets = inc.sets_UK
    top_k = sets.shape[1]
    for x in range(inc.expert_ptr[u], inc.expert_ptr[u + 1]):
        t = inc.expert_sets[x]
        if shared_U[t]:
            continue
        fare_i = inc.count_U[t] * fare_HX[inc.home_U[t], i]
        fare_j = inc.count_U[t] * fare_HX[inc.home_U[t], j]
        left, entered = touch_UX[t, i], touch_UX[t, j]
        touch_UX[t, i] = left - np.uint8(1)
        touch_UX[t, j] = entered + np.uint8(1)
        if left == 1:
            leave_E[u] -= fare_i
            for k in range(top_k):
                enter_EX[sets[t, k], i] += fare_i
        elif left == 2:
            for k in range(top_k):
                e = sets[t, k]
                if e != u and unit_E[e] == i:
                    leave_E[e] += fare_i
        if entered == 0:
            leave_E[u] += fare_j
            for k in range(top_k):
                enter_EX[sets[t, k], j] -= fare_j
        elif entered == 1:
            for k in range(top_k):
                e = sets[t, k]
                if e != u and unit_E[e] == j:
                    leave_E[e] -= fare_j


@inner_search_kernel
def exchange_shared(
    u: int, v: int, i: int, j: int, inc: Incidence, fare_HX: Floats, row: int, touch_UX: Bytes, leave_E: Floats
) -> None:
    """Sets that hold both experts touch the same units after the swap, but the two trade places in them."""
    for x in range(inc.pair_ptr[row], inc.pair_ptr[row + 1]):
        t = inc.pair_sets[x]
        alone_i = inc.count_U[t] * fare_HX[inc.home_U[t], i] * (touch_UX[t, i] == 1)
        alone_j = inc.count_U[t] * fare_HX[inc.home_U[t], j] * (touch_UX[t, j] == 1)
        leave_E[u] += alone_j - alone_i
        leave_E[v] += alone_i - alone_j
