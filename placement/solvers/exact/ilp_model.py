"""The integer program of one layer, in OR-tools CP-SAT.

Every coefficient is rounded so that the program's value of a map is never above the true objective; a lower bound of
the program is therefore one of the objective. Its unit, `unit` in sends per token, is about 1e-8.

x[e, g]       expert e has a slot on rank g
z[e, n]       ... on node n
one copy      y[u, n]: a token with set u touches node n; sends = (1 - 1/N) * mean number of nodes, of which a share
              (`busy_share`) counts as if every node were touched as often as the one that is touched most
more copies   r[u, h, n]: a token with set u and home h is sent to node n; s[u, h, e, n]: expert e is served there.
              Every expert is served at home or at one such node: no replica choice sends to fewer.
peak[b]       most loaded rank under loads b. With several copies the split of an expert's load over its ranks is free:
              no replica choice balances better, so that, too, is a lower bound; the true score judges what is found.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from ortools.sat.python import cp_model

from placement.bounds.layer_bound import sends_bound, smallest_imbalance
from placement.solvers.exact.ilp_symmetry import break_symmetry, canonical_map
from placement.solvers.problem import LayerProblem

UNIT = 1e-8
CAP_UNIT = 1e-10
SHARES = 1000  # an expert's load is split over its ranks in thousandths; `busy_share` is a number of them
SLACK = 1e-6  # a share of one unit, above the rounding of a product of floats of this size

Grid = list[list[Any]]


class Program(NamedTuple):
    """unit: what one unit of the program's objective is worth in sends per token."""

    model: Any
    x_EG: Grid
    unit: float


def num_terms(problem: LayerProblem) -> int:
    """Size of the program: how often an expert of a set meets a node (and a home, with redundant experts)."""
    nodes = problem.cluster.num_nodes
    return problem.sets_UK.size * nodes * (nodes if problem.num_redundant else 1)


def build(problem: LayerProblem, hint_P: npt.NDArray[np.int32]) -> Program:
    cluster = problem.cluster
    model = cp_model.CpModel()
    experts, ranks, nodes = range(problem.num_experts), range(cluster.num_ranks), range(cluster.num_nodes)
    x_EG = [[model.new_bool_var(f"x{e},{g}") for g in ranks] for e in experts]
    for g in ranks:
        model.add(sum(x_EG[e][g] for e in experts) == cluster.slots_per_gpu)
    for e in experts:
        if problem.num_redundant:
            model.add_bool_or(x_EG[e])
        else:
            model.add_exactly_one(x_EG[e])
    gpus = cluster.gpus_per_node
    z_EN = [[_any_of(model, x_EG[e][n * gpus : (n + 1) * gpus]) for n in nodes] for e in experts]
    break_symmetry(model, problem, x_EG, z_EN)
    sends, per_send = 0, 1.0
    if cluster.num_nodes > 1 and problem.send_price:
        sends, per_send = (_sends_replicated if problem.num_redundant else _sends_single)(model, problem, z_EN)
    times = max(round(per_send / UNIT), 1)
    unit = per_send / times
    peaks = _peaks(model, problem, x_EG, unit)
    model.minimize(times * sends + sum(peaks))
    _hint(model, x_EG, canonical_map(hint_P, problem))
    return Program(model, x_EG, unit)


def _any_of(model: Any, literals: list[Any]) -> Any:
    if len(literals) == 1:
        return literals[0]
    either = model.new_bool_var("")
    model.add_max_equality(either, literals)
    return either


def _sends_single(model: Any, problem: LayerProblem, z_EN: Grid) -> tuple[Any, float]:
    """(sum of count * nodes touched, a share of it as if all nodes were as busy as the busiest; what one is worth)."""
    cluster = problem.cluster
    nodes, tokens = cluster.num_nodes, int(problem.count_U.sum())
    terms_N: Grid = [[] for _ in range(nodes)]
    for ids, count in _sets(problem):
        least = -(-len(ids) // cluster.slots_per_node)
        y_N = [_implied_by(model, [z_EN[e][n] for e in ids]) for n in range(nodes)]
        model.add(sum(y_N) >= least)
        for terms, y in zip(terms_N, y_N, strict=True):
            terms.append(count * y)
    away = 1 - 1 / nodes
    touched_N = [sum(terms) for terms in terms_N]
    # the program's own relaxation is hopeless (x = 1/N touches one node); eigenvalues know better
    proven = sends_bound(problem.sets_UK, problem.count_U, problem.num_experts, nodes, cluster.slots_per_node)
    model.add(sum(touched_N) >= math.ceil(proven / away * tokens - SLACK))
    share = round(problem.busy_share * SHARES)
    if share == 0:
        return sum(touched_N), away / tokens
    busiest = model.new_int_var(0, tokens, "")
    for touched in touched_N:
        model.add(busiest >= touched)
    return (SHARES - share) * sum(touched_N) + share * nodes * busiest, away / tokens / SHARES


def _sets(problem: LayerProblem) -> list[tuple[list[int], int]]:
    """The sets that have experts, and how often each occurs."""
    rows = zip(problem.sets_UK.tolist(), problem.count_U.tolist(), strict=True)
    return [([e for e in ids if e >= 0], count) for ids, count in rows if ids[0] >= 0]


def _implied_by(model: Any, literals: list[Any]) -> Any:
    if len(literals) == 1:
        return literals[0]
    implied = model.new_bool_var("")
    for literal in literals:
        model.add_implication(literal, implied)
    return implied


def _sends_replicated(model: Any, problem: LayerProblem, z_EN: Grid) -> tuple[Any, float]:
    """(sum over homes of count * remote nodes, what one of it is worth)."""
    nodes, tokens = problem.cluster.num_nodes, int(problem.count_U.sum())
    terms = []
    for ids, count in _sets(problem):
        for home in range(nodes):
            others = [n for n in range(nodes) if n != home]
            sent = {n: model.new_bool_var("") for n in others}
            for e in ids:
                if len(others) == 1:  # an expert that is not at home is on the other node
                    model.add_bool_or([z_EN[e][home], sent[others[0]]])
                    continue
                served = []
                for n in others:
                    serves = model.new_bool_var("")
                    model.add_implication(serves, sent[n])
                    model.add_implication(serves, z_EN[e][n])
                    served.append(serves)
                model.add_bool_or([z_EN[e][home], *served])
            terms.append(count * sum(sent.values()))
    return sum(terms), 1.0 / (nodes * tokens)


def _peaks(model: Any, problem: LayerProblem, x_EG: Grid, unit: float) -> list[Any]:
    """One variable per row of loads: the most loaded rank times its price, in units. The caps are on row 0."""
    cluster = problem.cluster
    experts, ranks = range(problem.num_experts), range(cluster.num_ranks)
    parts, part_EG = 1, x_EG
    if problem.num_redundant:
        parts, part_EG = SHARES, _split(model, problem, x_EG)
    hot_BEG = problem.load_BE[:, :, None] * cluster.num_ranks / cluster.speed_G() / parts
    gpus = cluster.gpus_per_node
    speed_G = cluster.speed_G()
    speed_N = speed_G.reshape(-1, gpus).mean(axis=1)
    node_EG = hot_BEG[0] * speed_G / np.repeat(speed_N * gpus, gpus)
    blocks = [[g] for g in ranks], [list(range(n * gpus, (n + 1) * gpus)) for n in range(cluster.num_nodes)]
    caps = (problem.options.max_imbalance, problem.options.max_node_imbalance)
    for cap, hot_EG, members in zip(caps, (hot_BEG[0], node_EG), blocks, strict=True):
        if cap is None:
            continue
        weight_EG = np.floor(hot_EG / CAP_UNIT - SLACK).clip(0).astype(np.int64).tolist()
        for block in members:
            model.add(
                sum(weight_EG[e][g] * part_EG[e][g] for e in experts for g in block)
                <= math.ceil((cap + 1e-9) / CAP_UNIT + SLACK)
            )
    price = problem.balance_price / len(problem.load_BE) / unit
    if price == 0:
        return []
    peaks = []
    for load_E, hot_EG in zip(problem.load_BE, hot_BEG, strict=True):
        floor = math.floor(smallest_imbalance(load_E, cluster) * (1 - 1e-12) * price - SLACK)
        peak = model.new_int_var(
            max(floor, 0), math.ceil(price * cluster.num_ranks / float(cluster.speed_G().min())), ""
        )
        weight_EG = np.floor(hot_EG * price - SLACK).clip(0).astype(np.int64).tolist()
        for g in ranks:
            model.add(peak >= sum(weight_EG[e][g] * part_EG[e][g] for e in experts))
        peaks.append(peak)
    return peaks


def _split(model: Any, problem: LayerProblem, x_EG: Grid) -> Grid:
    """Thousandths of each expert's load that its ranks serve, rounded down: the sum may fall short by one a rank."""
    grid = []
    for row in x_EG:
        shares = [model.new_int_var(0, SHARES, "") for _ in row]
        for share, x in zip(shares, row, strict=True):
            model.add(share <= SHARES * x)
        model.add(sum(shares) <= SHARES)
        model.add(sum(shares) >= SHARES - sum(row) + 1)
        grid.append(shares)
    return grid


def _hint(model: Any, x_EG: Grid, phy2log_P: npt.NDArray[np.int32]) -> None:
    ranks = len(x_EG[0])
    held_GE = np.zeros((ranks, len(x_EG)), dtype=bool)
    held_GE[np.repeat(np.arange(ranks), len(phy2log_P) // ranks), phy2log_P] = True
    for e, row in enumerate(x_EG):
        for g, x in enumerate(row):
            model.add_hint(x, bool(held_GE[g, e]))
