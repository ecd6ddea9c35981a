"""The dual values of both Lagrangian bounds once more, slowly: fractions, all splits by brute force, Jacobi's
eigenvalues.

Nothing is shared with `placement.cost` but the multipliers, so that an error there shows.
"""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np

from placement.bounds.lagrangian_bound import Multipliers
from placement.bounds.spectral_bound import Pieces

Long = np.longdouble


def one_copy_dual(pieces: Pieces, at: Multipliers) -> Fraction:
    """What `lagrangian_bound` proves by these multipliers, without an allowance for rounding; no caps, no triangles."""
    nodes, slots, experts = pieces.num_nodes, pieces.slots_per_node, pieces.load_BE.shape[1]
    homes = 0 if pieces.home_U is None else nodes
    size = experts + homes
    home_U = np.full(len(pieces.weight_U), -1) if pieces.home_U is None else pieces.home_U
    reward = [[Fraction(0)] * size for _ in range(size)]
    value = Fraction(0)
    thetas = (theta for theta_UC in at.thetas for theta in theta_UC.tolist())
    for theta, u in zip(thetas, in_kinds(pieces.sets_UK, pieces.weight_U, home_U), strict=True):
        members, home = sorted(e for e in pieces.sets_UK[u].tolist() if e >= 0), experts + int(home_U[u])
        known = home >= experts
        weight = Fraction(float(pieces.weight_U[u] if known else pieces.weight_U[u] * float(1 - 1 / nodes)))
        pairs = list(itertools.combinations(members, 2)) + ([(e, home) for e in members] if known else [])
        price = dict(zip(pairs, map(Fraction, theta), strict=True))
        value += weight * min(
            len(blocks) - known + sum(price[pair] for block in blocks for pair in itertools.combinations(block, 2))
            for blocks in partitions([*members, home] if known else members)
            if len(blocks) <= nodes and max(len([e for e in block if e < experts]) for block in blocks) <= slots
        )
        for (u1, u2), theta_pair in price.items():
            reward[u1][u2] += weight * theta_pair / 2
            reward[u2][u1] += weight * theta_pair / 2
    for b, row in enumerate(pieces.load_BE.tolist()):
        paid = Fraction(float(pieces.price_B[b]))
        share = 1 - Fraction(float(at.floor_B[b]))
        value += paid * Fraction(float(pieces.floor_B[b])) * (1 - share)
        for u1, u2 in itertools.product(range(experts), repeat=2):
            pay = paid * share * nodes / Fraction(pieces.fastest_node)
            reward[u1][u2] -= pay * Fraction(float(at.node_BE[b, u1])) * Fraction(row[u2]) / 2
            reward[u2][u1] -= pay * Fraction(float(at.node_BE[b, u1])) * Fraction(row[u2]) / 2
    earned = Fraction(0)
    for u1, u2 in itertools.product(range(size), repeat=2):
        price = Fraction(float(at.price_EE[u1, u2]))
        reward[u1][u2] += price
        between_homes = min(u1, u2) >= experts
        earned -= price if u1 == u2 else Fraction(0) if between_homes else min(price, Fraction(0))
    beside = [[Fraction(1)] * size]
    if homes:
        beside.append([Fraction(1)] * experts + [Fraction(-slots)] * homes)
    top = sum(eigenvalues_beside(reward, *beside)[: nodes - 1], Fraction(0))
    earned += sum(map(sum, reward)) / nodes + (slots + (homes > 0)) * top
    return value - earned


def many_copies_dual(sets_UK: Any, weight_U: Any, experts: int, nodes: int, slots: int, at: Multipliers) -> Fraction:
    """What `lagrangian_bound` proves of sends by these multipliers: every set looks at whatever nodes could host."""
    matrix = [[Fraction(float(price)) for price in row] for row in at.price_EE.tolist()]
    gain = [
        sum((max(-price, Fraction(0)) for v, price in enumerate(row) if u != v), -row[u])
        for u, row in enumerate(matrix)
    ]
    value = Fraction(0)
    thetas = (theta for theta_UC in at.thetas for theta in theta_UC.tolist())
    for theta, u in zip(thetas, in_kinds(sets_UK, weight_U, np.full(len(weight_U), -1)), strict=True):
        members = sorted(e for e in sets_UK[u].tolist() if e >= 0)
        weight = Fraction(float(weight_U[u]))
        pairs = list(itertools.combinations(members, 2))
        price = dict(zip([*pairs, *((e,) for e in members)], map(Fraction, theta), strict=True))
        hosted = [part for r in range(min(len(members), slots) + 1) for part in itertools.combinations(members, r)]
        price_of = {part: sum(price[key] for r in (1, 2) for key in itertools.combinations(part, r)) for part in hosted}
        value += weight * min(
            mean_sends(members, parts) + sum(price_of[part] for part in parts)
            for parts in itertools.combinations_with_replacement(hosted, nodes)
            if set().union(*parts) == set(members)
        )
        for key, amount in price.items():
            if len(key) == 1:
                gain[key[0]] += weight * amount
            else:
                matrix[key[0]][key[1]] += weight * amount / 2
                matrix[key[1]][key[0]] += weight * amount / 2
    total, share, further = sum(map(sum, matrix)), Fraction(slots, experts), nodes * slots - experts
    value -= nodes * share**2 * total
    gain = [gain[u] + 2 * share * (sum(row) - total / experts) for u, row in enumerate(matrix)]
    value -= sum(gain)
    for earned in sorted(gain, reverse=True):
        copies = min(further, nodes - 1)
        value, further = value - copies * earned, further - copies
    values = eigenvalues_beside(matrix, [Fraction(1)] * experts)
    count, trace = min(nodes, experts - 1), nodes * slots * (1 - share)
    sums = [min(k * slots + nodes * slots - experts, trace) if k < count else trace for k in range(1, count + 1)]
    return value - sum((sums[k] - (sums[k - 1] if k else 0)) * values[k] for k in range(count))


def in_kinds(sets_UK: Any, weight_U: Any, home_U: Any) -> list[int]:
    """The sets that have experts, as multipliers come: random homes first, then large sets, then heavy ones."""
    size_U = (sets_UK >= 0).sum(axis=1)
    key = [(home_U[u] >= 0, -size_U[u], -weight_U[u], u) for u in range(len(sets_UK)) if size_U[u]]
    return [u for *_, u in sorted(key)]


def mean_sends(members: list[int], parts: tuple[tuple[int, ...], ...]) -> Fraction:
    """Over homes, the fewest other nodes that host what the home does not."""
    total = 0
    for home in range(len(parts)):
        others = [set(part) for n, part in enumerate(parts) if n != home]
        needed = set(members) - set(parts[home])
        total += next(
            r
            for r in range(len(parts))
            if any(needed <= set().union(*chosen) for chosen in itertools.combinations(others, r))
        )
    return Fraction(total, len(parts))


def partitions(members: list[int]) -> Any:
    if not members:
        yield []
        return
    first, rest = members[0], members[1:]
    for r in range(len(rest) + 1):
        for company in itertools.combinations(rest, r):
            for blocks in partitions([e for e in rest if e not in company]):
                yield [[first, *company], *blocks]


def eigenvalues_beside(matrix: list[list[Fraction]], *vectors: list[Fraction]) -> list[Fraction]:
    """Eigenvalues on the complement of vectors that are orthogonal, falling: Jacobi's rotations in long double."""
    size = len(matrix)
    sunk = 4 * sum(abs(x) for row in matrix for x in row) + 1  # where the vectors' own eigenvalues go
    for vector in vectors:
        norm = sum(x * x for x in vector)
        along = [sum(matrix[i][j] * vector[j] for j in range(size)) / norm for i in range(size)]
        both = sum(vector[i] * along[i] for i in range(size)) / norm
        matrix = [
            [
                matrix[i][j]
                - along[i] * vector[j]
                - vector[i] * along[j]
                + (both - sunk / norm) * vector[i] * vector[j]
                for j in range(size)
            ]
            for i in range(size)
        ]
    a = np.array([[long(x) for x in row] for row in matrix])
    for _ in range(30):
        for p, q in itertools.combinations(range(size), 2):
            if abs(a[p, q]) > 1e-100:
                tau = (a[q, q] - a[p, p]) / (2 * a[p, q])
                t = (Long(1) if tau >= 0 else Long(-1)) / (abs(tau) + np.sqrt(1 + tau * tau))
                c = 1 / np.sqrt(1 + t * t)
                rotation = np.array([[c, t * c], [-t * c, c]])
                a[:, [p, q]] = a[:, [p, q]] @ rotation
                a[[p, q]] = rotation.T @ a[[p, q]]
    return [Fraction(*x.as_integer_ratio()) for x in np.sort(np.diag(a))[::-1]][: size - len(vectors)]


def long(x: Fraction) -> Any:
    high = Long(float(x))
    return high + Long(float(x - Fraction(float(x))))
