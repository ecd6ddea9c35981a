"""Tables of what moves of experts with one copy cost, kept up to date (numba): see `anneal_single`.

enter_EX[e, x]  fares of the sets of e that do not touch unit x yet: what they would cost more if e moved there
leave_E[e]      fares of the sets of e that touch e's unit only because of e
guest_UX[t, x]  int32, how many members of set t are on unit x, times GUEST, and the exclusive or of their ids, which is
                the id of a lone member
"""

from __future__ import annotations

import numpy as np

from placement.solvers.annealing.anneal_common import Floats, Ids, Incidence, Ints, members
from placement.support.kernel import inlined_kernel, inner_search_kernel

GUEST: np.int32 = np.int32(1 << 17)  # more than any id


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
    guest_UX: Ids,
    enter_EX: Floats,
    leave_E: Floats,
    touched_HX: Ints,
) -> float:
    """Build the tables, and count the tokens of each home that touch each unit; returns the sum of all fares."""
    sets, count = inc.sets_UK, inc.count_U
    for t in range(sets.shape[0]):
        fare_X, size = fare_HX[inc.home_U[t]], members(t, inc)
        for k in range(size):
            guest_UX[t, unit_E[sets[t, k]]] = (guest_UX[t, unit_E[sets[t, k]]] ^ sets[t, k]) + GUEST
        for x in range(guest_UX.shape[1]):
            guests = guest_UX[t, x] // GUEST
            if guests > 0:
                touched_HX[inc.home_U[t], x] += count[t]
            else:
                for k in range(size):
                    enter_EX[sets[t, k], x] += count[t] * fare_X[x]
            if guests == 1:
                leave_E[guest_UX[t, x] % GUEST] += count[t] * fare_X[x]
    total = 0.0
    for h in range(fare_HX.shape[0]):
        for x in range(fare_HX.shape[1]):
            total += fare_HX[h, x] * touched_HX[h, x]
    return total


@inner_search_kernel
def move_expert(
    u: int, i: int, j: int, inc: Incidence, fare_HX: Floats, guest_UX: Ids, enter_EX: Floats, leave_E: Floats
) -> None:
    """Expert u goes from unit i to j. Most sets touch both units with or without u, and change nothing else."""
    sets = inc.sets_UK
    top_k = sets.shape[1]
    guest = np.int32(u)
    for x in range(inc.expert_ptr[u], inc.expert_ptr[u + 1]):
        t = inc.expert_sets[x]
        left, entered = (guest_UX[t, i] ^ guest) - GUEST, guest_UX[t, j]
        guest_UX[t, i] = left
        guest_UX[t, j] = (entered ^ guest) + GUEST
        if left >= 2 * GUEST and entered >= 2 * GUEST:
            continue
        fare_i = inc.count_U[t] * fare_HX[inc.home_U[t], i]
        fare_j = inc.count_U[t] * fare_HX[inc.home_U[t], j]
        if left < GUEST:
            leave_E[u] -= fare_i
            for k in range(top_k):
                enter_EX[sets[t, k], i] += fare_i
        elif left < 2 * GUEST:
            leave_E[left - GUEST] += fare_i
        if entered < GUEST:
            leave_E[u] += fare_j
            for k in range(top_k):
                enter_EX[sets[t, k], j] -= fare_j
        elif entered < 2 * GUEST:
            leave_E[entered - GUEST] -= fare_j
