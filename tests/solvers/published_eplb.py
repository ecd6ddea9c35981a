"""The algorithm of deepseek-ai/EPLB (`rebalance_experts`), from its description, with nothing mended.

Engines run what it gives, maps in which a GPU holds an expert several times among them. Shares no code with the
library; plain loops, one layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def packs(weights: Sequence[float], number: int) -> list[list[int]]:
    """Items by falling weight, each into the lightest pack that has room."""
    room = len(weights) // number
    if room == 1:
        return [[item] for item in range(number)]
    found: list[list[int]] = [[] for _ in range(number)]
    total = [0.0] * number
    for item in sorted(range(len(weights)), key=lambda one: -weights[one]):
        pack = min((one for one in range(number) if len(found[one]) < room), key=lambda one: total[one])
        found[pack].append(item)
        total[pack] += weights[item]
    return found


def copies(weights: Sequence[float], slots: int) -> tuple[list[int], list[int]]:
    """(expert of each copy; copies of each expert): a further copy goes to the highest load per copy."""
    held, count = list(range(len(weights))), [1] * len(weights)
    while len(held) < slots:
        hottest = max(range(len(weights)), key=lambda one: weights[one] / count[one])
        held.append(hottest)
        count[hottest] += 1
    return held, count


def published_row(load_E: Sequence[float], slots: int, groups: int, nodes: int, gpus: int) -> list[int]:
    """The experts of one layer's slots. Groups of experts go to nodes first, if the nodes divide them."""
    if groups % nodes:
        groups, nodes = 1, 1
    size = len(load_E) // groups
    loads = [sum(load_E[group * size : (group + 1) * size]) for group in range(groups)]
    row: list[int] = []
    for chosen in packs(loads, nodes):
        own = [group * size + member for group in chosen for member in range(size)]
        held, count = copies([load_E[expert] for expert in own], slots // nodes)
        each = [load_E[own[one]] / count[one] for one in held]
        row += [own[held[copy]] for pack in packs(each, gpus // nodes) for copy in pack]
    return row


def published_map(
    layers: int, experts: int, redundant: int, nodes: int, gpus: int, *, groups: int = 1, seed: int = 0
) -> np.ndarray:
    """Of loads as skewed as those of real models: lognormal, sigma 0.8. Whole numbers [layers, slots]."""
    load_LE = np.random.default_rng(seed).lognormal(0.0, 0.8, (layers, experts))
    slots, ranks = experts + redundant, nodes * gpus
    return np.array([published_row(load_E.tolist(), slots, groups, nodes, ranks) for load_E in load_LE])
