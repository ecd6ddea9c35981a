"""Requests to home nodes at the least cost with tokens shared evenly: a generalised assignment problem.

Its relaxation, in which a request's tokens may be shared among nodes, is a minimum-cost flow: that is the bound. The
flow leaves at most a few requests split; they are put whole, moved and swapped until every node keeps its share. Where
a gap is left and the problem is small, CP-SAT goes on from there.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placement.core.choices import TOKEN_TOLERANCE
from placement.errors import OptionError
from placement.grouping.assign_kernels import improve, repair

log = logging.getLogger("placement")

GAP = 1e-3  # a smaller gap between answer and bound is not worth more work
FLOW_UNITS = 1e6  # a token's cost is rounded down to a whole number of parts of the mean: so many parts
EXACT_SIZE = 20_000  # requests times nodes that CP-SAT is given
EXACT_WORK = 4.0  # units of CP-SAT's deterministic time
SWAP_REQUESTS = 4_000  # with more requests a sweep of swaps takes seconds, and single moves already come close

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Homes of requests and how good they are.

    Attributes:
        home_Q: Home node of each request, int32 [Q].
        cost: Sum of the requests' costs at their homes.
        bound: No assignment within the cap costs less.
        cap: Tokens that a node may get: (1 + tolerance) times its share, more where no assignment was found within it.
        load_N: Tokens of each node, int64 [N].
    """

    home_Q: npt.NDArray[np.int32]
    cost: float
    bound: float
    cap: int
    load_N: npt.NDArray[np.int64]

    @property
    def gap(self) -> float:
        """(cost - bound) / cost, 0 where there is no cost."""
        return max(self.cost - self.bound, 0.0) / self.cost if self.cost > 0 else 0.0

    @property
    def token_imbalance(self) -> float:
        """Most tokens of a node over the mean; 1 without tokens."""
        mean = self.load_N.mean()
        return float(self.load_N.max() / mean) if mean > 0 else 1.0


def check_tolerance(tolerance: float) -> None:
    """Raise OptionError unless it is a share of tokens."""
    if not 0 <= tolerance <= 1e6:
        raise OptionError(f"tolerance={tolerance} must be 0 or more: the share of tokens that a node may get too many")


def assign_homes(
    cost_QN: Floats, tokens_Q: npt.NDArray[np.int64], *, tolerance: float = TOKEN_TOLERANCE, exact: bool = True
) -> Assignment:
    """The homes that cost least of all that give no node more than (1 + tolerance) times its share of tokens.

    If a request is longer than that share, or no assignment is found that keeps it, the cap is raised to the lowest
    that the largest requests first, each to the emptiest node, can keep. Deterministic.

    Args:
        cost_QN: What request q costs if its home is node n, float64 [Q, N], finite.
        tokens_Q: Tokens of each request, int64 [Q]; requests without any go, in turn, to the nodes with the fewest.
        exact: On small problems let CP-SAT look for homes within the cap where none were found, and close a gap that is
            left.
    """
    check_tolerance(tolerance)
    cost_QN = np.asarray(cost_QN, dtype=np.float64)
    tokens_Q = np.asarray(tokens_Q, dtype=np.int64)
    num_nodes = cost_QN.shape[1]
    home_Q = np.full(len(tokens_Q), -1, dtype=np.int32)
    busy = np.flatnonzero(tokens_Q > 0)
    cost_BN, tokens_B = cost_QN[busy], tokens_Q[busy]
    share = int(tokens_B.sum() * (1 + tolerance) / num_nodes)
    greedy_B, reachable = _longest_first(tokens_B, num_nodes)
    cap = max(share, int(tokens_B.max(initial=0)))
    bound, flow_BN = cheapest_flow(cost_BN, tokens_B, np.full(num_nodes, cap))
    home_B = _repaired(cost_BN, tokens_B, flow_BN.argmax(axis=1), cap)
    if home_B is None and exact and cost_BN.size <= EXACT_SIZE:
        tried_B, bound = _exact(cost_BN, tokens_B, flow_BN.argmax(axis=1), cap, bound)
        home_B = tried_B if _keeps(tokens_B, tried_B, cap) else None
    if home_B is None:
        cap = max(cap, reachable)
        bound, flow_BN = cheapest_flow(cost_BN, tokens_B, np.full(num_nodes, cap))
        home_B = _repaired(cost_BN, tokens_B, flow_BN.argmax(axis=1), cap)
        home_B = greedy_B if home_B is None else home_B
    if cap > share:
        log.info("tokens of a node: %d at most, where %d are its share; requests are too long or too few", cap, share)
    improve(cost_BN, tokens_B, home_B, cap, len(tokens_B) <= SWAP_REQUESTS)
    cost = _cost(cost_BN, home_B)
    if exact and cost - bound > GAP * abs(cost) and cost_BN.size <= EXACT_SIZE:
        home_B, bound = _exact(cost_BN, tokens_B, home_B, cap, bound)
        cost = _cost(cost_BN, home_B)
    home_Q[busy] = home_B
    requests_N = np.bincount(home_B, minlength=num_nodes)
    for q in np.flatnonzero(tokens_Q == 0):
        home_Q[q] = int(requests_N.argmin())
        requests_N[home_Q[q]] += 1
        cost += float(cost_QN[q, home_Q[q]])
        bound += float(cost_QN[q].min())
    load_N = np.bincount(home_Q, weights=tokens_Q, minlength=num_nodes).astype(np.int64)
    return Assignment(home_Q=home_Q, cost=cost, bound=min(bound, cost), cap=cap, load_N=load_N)


def _cost(cost_QN: Floats, home_Q: npt.NDArray[np.integer]) -> float:
    return float(cost_QN[np.arange(len(home_Q)), home_Q].sum())


def _keeps(tokens_Q: npt.NDArray[np.int64], home_Q: npt.NDArray[np.integer], cap: int) -> bool:
    return bool(np.bincount(home_Q, weights=tokens_Q).max(initial=0) <= cap)


def _longest_first(tokens_Q: npt.NDArray[np.int64], num_nodes: int) -> tuple[npt.NDArray[np.int64], int]:
    """Each request, the longest first, to the emptiest node; and the tokens of the fullest."""
    load_N = np.zeros(num_nodes, dtype=np.int64)
    home_Q = np.zeros(len(tokens_Q), dtype=np.int64)
    for q in np.argsort(-tokens_Q, kind="stable"):
        home_Q[q] = load_N.argmin()
        load_N[home_Q[q]] += tokens_Q[q]
    return home_Q, int(load_N.max(initial=0))


def cheapest_flow(
    cost_QN: Floats, tokens_Q: npt.NDArray[np.int64], cap_N: npt.NDArray[np.int64]
) -> tuple[float, npt.NDArray[np.int64]]:
    """The least cost if requests may be split, rounded down, and how many tokens of each go where, int64 [Q, N].

    With one token a request nothing can be split, so the flow is the best assignment. Caps hold all tokens.
    """
    num_requests, num_nodes = cost_QN.shape
    flow_QN = np.zeros((num_requests, num_nodes), dtype=np.int64)
    if not num_requests:
        return 0.0, flow_QN
    from ortools.graph.python.min_cost_flow import SimpleMinCostFlow  # loaded only for grouping

    each_QN = cost_QN / tokens_Q[:, None]
    least = float(each_QN.min())
    spread = float((each_QN - least).mean()) or 1.0
    unit_QN = np.floor((each_QN - least) * (FLOW_UNITS / spread)).astype(np.int64)
    solver = SimpleMinCostFlow()
    source = np.repeat(np.arange(num_requests), num_nodes)
    node = np.tile(np.arange(num_nodes), num_requests) + num_requests
    arcs = solver.add_arcs_with_capacity_and_unit_cost(
        source, node, np.repeat(tokens_Q, num_nodes), unit_QN.reshape(-1)
    )
    sink = num_requests + num_nodes
    solver.add_arcs_with_capacity_and_unit_cost(
        np.arange(num_requests, sink), np.full(num_nodes, sink), cap_N, np.zeros(num_nodes, np.int64)
    )
    solver.set_nodes_supplies(
        np.arange(sink + 1), np.concatenate([tokens_Q, np.zeros(num_nodes, np.int64), [-tokens_Q.sum()]])
    )
    status = solver.solve()
    if status != solver.OPTIMAL:  # unreachable: the caps together hold all tokens
        return float(cost_QN.min(axis=1).sum()), np.where(cost_QN == cost_QN.min(axis=1, keepdims=True), 1, 0)
    flow_QN[:] = solver.flows(arcs).reshape(flow_QN.shape)
    bound = solver.optimal_cost() * (spread / FLOW_UNITS) + least * float(tokens_Q.sum())
    return bound - 1e-9 * abs(bound), flow_QN


def _repaired(
    cost_QN: Floats, tokens_Q: npt.NDArray[np.int64], home_Q: npt.NDArray[np.int64], cap: int
) -> npt.NDArray[np.int64] | None:
    """Homes within the cap, near those given; None if none are found."""
    home_Q = home_Q.copy()
    if repair(cost_QN, tokens_Q, home_Q, cap):
        return home_Q
    # pack anew: the longest first, each to its cheapest node that has room
    load_N = np.zeros(cost_QN.shape[1], dtype=np.int64)
    for q in np.argsort(-tokens_Q, kind="stable"):
        free = load_N + tokens_Q[q] <= cap
        if not free.any():
            return None
        home_Q[q] = int(np.where(free, cost_QN[q], np.inf).argmin())
        load_N[home_Q[q]] += tokens_Q[q]
    return home_Q


def _exact(
    cost_QN: Floats, tokens_Q: npt.NDArray[np.int64], home_Q: npt.NDArray[np.int64], cap: int, bound: float
) -> tuple[npt.NDArray[np.int64], float]:
    """CP-SAT from these homes on, within its work limit: better homes and a higher bound, if it finds any.

    Where the homes given break the cap, any that keep it are better.
    """
    from ortools.sat.python import cp_model

    over_QN = cost_QN - cost_QN.min(axis=1, keepdims=True)
    unit = max(float(over_QN.max()) / 2**24, 1e-12)
    price_QN = np.floor(over_QN / unit).astype(np.int64)  # rounded down, so that CP-SAT's bound is a bound on the cost
    model = cp_model.CpModel()
    at_QN = [[model.new_bool_var("") for _ in row] for row in price_QN]
    for q, row in enumerate(at_QN):
        model.add_exactly_one(row)
        for n, var in enumerate(row):
            model.add_hint(var, int(home_Q[q] == n))
    for n in range(cost_QN.shape[1]):
        model.add(cp_model.LinearExpr.weighted_sum([row[n] for row in at_QN], tokens_Q.tolist()) <= cap)
    terms = [var for row in at_QN for var in row]
    model.minimize(cp_model.LinearExpr.weighted_sum(terms, price_QN.reshape(-1).tolist()))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_deterministic_time = EXACT_WORK
    solver.parameters.relative_gap_limit = 0.0
    status = solver.solve(model)
    floor = float(cost_QN.min(axis=1).sum())
    bound = max(bound, solver.best_objective_bound * unit + floor - 1e-9 * abs(floor))
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        found_Q = np.array([[solver.value(var) for var in row] for row in at_QN]).argmax(axis=1)
        if not _keeps(tokens_Q, home_Q, cap) or _cost(cost_QN, found_Q) < _cost(cost_QN, home_Q):
            home_Q = found_Q
    return home_Q, bound
