"""What goes into each node, and what a move makes of the most (numba).

A move of two experts changes what goes into two nodes, so the highest of the others is among the three highest of all.
"""

from __future__ import annotations

from placement.solvers.annealing.anneal_common import Floats, Ints
from placement.support.kernel import inlined_kernel, inner_search_kernel


@inner_search_kernel
def measure_into(fare_HX: Floats, touched_HX: Ints, into_N: Floats) -> None:
    """What goes into each node, by the tokens of each home that touch each unit."""
    units_per_node = fare_HX.shape[1] // into_N.shape[0]
    for h in range(fare_HX.shape[0]):
        for x in range(fare_HX.shape[1]):
            into_N[x // units_per_node] += fare_HX[h, x] * touched_HX[h, x]


@inner_search_kernel
def find_top(into_N: Floats, top_3: Ints) -> None:
    """The three nodes that most goes into, the highest first; -1 where there are fewer."""
    first, second, third = -1, -1, -1
    for n in range(into_N.shape[0]):
        if first < 0 or into_N[n] > into_N[first]:
            first, second, third = n, first, second
        elif second < 0 or into_N[n] > into_N[second]:
            second, third = n, second
        elif third < 0 or into_N[n] > into_N[third]:
            third = n
    top_3[0], top_3[1], top_3[2] = first, second, third


@inlined_kernel
def more_of_busiest(n: int, m: int, more_n: float, more_m: float, into_N: Floats, top_3: Ints) -> float:
    """Change of the number of nodes times what goes into the busiest, if more goes into nodes n and m."""
    into_n, into_m = into_N[n] + more_n, into_N[m] + more_m
    if n == m:
        into_n = into_m = into_N[n] + more_n + more_m
    peak = into_n if into_n > into_m else into_m
    for x in top_3:
        if x not in (-1, n, m):
            peak = max(peak, into_N[x])
            break
    return float(into_N.shape[0] * (peak - into_N[top_3[0]]))


@inner_search_kernel
def beyond_mean(into_N: Floats, more_N: Floats) -> float:
    """The number of nodes times what goes into the busiest, less what goes into all."""
    total, peak = 0.0, 0.0
    for n in range(into_N.shape[0]):
        into = into_N[n] + more_N[n]
        total += into
        peak = max(peak, into)
    return float(into_N.shape[0] * peak - total)
