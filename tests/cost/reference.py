"""What a map costs, by brute force and straight from the definitions; shares no code with the library.

For every token, layer and home node, all that can happen is enumerated with its probability: which cover is taken
(choice `min-nodes`) and which slot serves each expert of the token's set. Nothing is derived in closed form.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

Outcome = tuple[float, tuple[int, ...]]  # probability, slot that serves each expert of the set


@dataclass(frozen=True)
class Costs:
    """Of one layer: per token the sends of the three kinds; in all the assignments that every slot serves."""

    node_sends: float
    rank_sends: float
    remote_assignments: float
    load_of_slot: tuple[float, ...]


@dataclass(frozen=True)
class Map:
    """One layer of a placement: the expert in each slot, and how slots are grouped."""

    slots: tuple[int, ...]
    num_nodes: int
    gpus_per_node: int
    slots_per_gpu: int

    def rank(self, slot: int) -> int:
        return slot // self.slots_per_gpu

    def node(self, slot: int) -> int:
        return self.rank(slot) // self.gpus_per_node

    def slots_of(self, expert: int) -> list[int]:
        return [slot for slot, held in enumerate(self.slots) if held == expert]

    def slots_on(self, expert: int, node: int) -> list[int]:
        """One slot of every rank of the node that has the expert: where ranks are looked for, one slot is enough."""
        first = {self.rank(slot): slot for slot in reversed(self.slots_of(expert)) if self.node(slot) == node}
        return sorted(first.values())


def smallest_covers(layout: Map, experts: Sequence[int], home: int) -> list[tuple[int, ...]]:
    """Every smallest set of nodes other than `home` that together host all of `experts`."""
    others = [node for node in range(layout.num_nodes) if node != home]
    for size in range(len(others) + 1):
        covers = [
            nodes
            for nodes in itertools.combinations(others, size)
            if all(any(layout.slots_on(expert, node) for node in nodes) for expert in experts)
        ]
        if covers:
            return covers
    raise AssertionError("an expert is hosted nowhere")


def greedy_sizes(layout: Map, experts: Sequence[int], home: int) -> set[int]:
    """Sizes of all covers that come of taking, again and again, a node that hosts most of the experts still open."""
    if not experts:
        return {0}
    gain = {
        node: sum(bool(layout.slots_on(expert, node)) for expert in experts)
        for node in range(layout.num_nodes)
        if node != home
    }
    sizes = set()
    for node in [node for node, value in gain.items() if value == max(gain.values())]:
        left = [expert for expert in experts if not layout.slots_on(expert, node)]
        sizes |= {size + 1 for size in greedy_sizes(layout, left, home)}
    return sizes


def _even(slots: Sequence[int]) -> list[tuple[float, int]]:
    return [(1 / len(slots), slot) for slot in slots]


def _even_over_nodes(layout: Map, expert: int, nodes: Sequence[int]) -> list[tuple[float, int]]:
    """The nodes that host the expert share it evenly, and its slots on a node share that evenly."""
    hosting = [node for node in nodes if layout.slots_on(expert, node)]
    chances = []
    for node in hosting:
        for chance, slot in _even(layout.slots_on(expert, node)):
            chances.append((chance / len(hosting), slot))
    return chances


def scenarios(layout: Map, experts: Sequence[int], home: int, choice: str) -> Iterator[tuple[float, list]]:
    """(probability, for each expert its list of (chance, slot)); within a scenario experts choose independently."""
    if choice == "uniform":
        yield 1.0, [_even(layout.slots_of(expert)) for expert in experts]
    elif choice == "local-first":
        yield 1.0, [_even(layout.slots_on(expert, home) or layout.slots_of(expert)) for expert in experts]
    elif choice == "min-nodes":
        far = [expert for expert in experts if not layout.slots_on(expert, home)]
        covers = smallest_covers(layout, far, home)
        for cover in covers:
            yield (
                1 / len(covers),
                [_even_over_nodes(layout, expert, cover if expert in far else (home,)) for expert in experts],
            )
    else:
        raise AssertionError(choice)


def outcomes(layout: Map, experts: Sequence[int], home: int, choice: str) -> Iterator[Outcome]:
    for weight, chances in scenarios(layout, experts, home, choice):
        for joint in itertools.product(*chances):
            probability = weight
            for chance, _ in joint:
                probability *= chance
            yield probability, tuple(slot for _, slot in joint)


@lru_cache(maxsize=100_000)
def token_costs(layout: Map, experts: tuple[int, ...], home: int, choice: str) -> Costs:
    """Expected costs of one token whose home is given."""
    nodes = ranks = remote = 0.0
    load = [0.0] * len(layout.slots)
    for probability, served_by in outcomes(layout, experts, home, choice):
        away = [slot for slot in served_by if layout.node(slot) != home]
        nodes += probability * len({layout.node(slot) for slot in away})
        ranks += probability * len({layout.rank(slot) for slot in away})
        remote += probability * len(away)
        for slot in served_by:
            load[slot] += probability
    return Costs(nodes, ranks, remote, tuple(load))


def layer_costs(layout: Map, sets: Sequence[tuple[int, ...]], homes: Sequence[int], choice: str) -> Costs:
    """Mean costs of tokens with these top-k sets, of any sizes; home -1 is the mean over all nodes."""
    nodes = ranks = remote = 0.0
    load = [0.0] * len(layout.slots)
    for experts, given in zip(sets, homes, strict=True):
        possible = range(layout.num_nodes) if given == -1 else [given]
        for home in possible:
            one = token_costs(layout, tuple(sorted(experts)), home, choice)
            nodes += one.node_sends / len(possible)
            ranks += one.rank_sends / len(possible)
            remote += one.remote_assignments / len(possible)
            for slot, value in enumerate(one.load_of_slot):
                load[slot] += value / len(possible)
    total = len(sets)
    return Costs(nodes / total, ranks / total, remote / total, tuple(load))


def link_costs(cluster: Any) -> tuple[tuple[float, ...], ...]:
    """Cost of one copy from every rank to every rank, link by link; `cluster` only holds the numbers."""
    gpus, topology = cluster.gpus_per_node, cluster.topology
    ranks = range(cluster.num_nodes * gpus)

    def cost(a: int, b: int) -> float:
        if topology.rank_cost:
            return topology.rank_cost[a][b]
        home, node = a // gpus, b // gpus
        if home == node:
            return 0.0
        ways = [topology.node_gbps[x] if topology.node_gbps else cluster.inter_gbps for x in (home, node)]
        ways += [level.gbps for level in topology.levels if home // level.nodes != node // level.nodes]
        return cluster.inter_gbps / min(ways)

    return tuple(tuple(cost(a, b) for b in ranks) for a in ranks)


def copies(layout: Map, served_by: Sequence[int], home: int, gpu: int, transport: str) -> list[int]:
    """Ranks to which the `gpu`-th GPU of node `home` sends one copy each of a token that these slots serve."""

    def rail(node: int) -> int:  # the peer of the same position, which passes copies on inside its node
        return node * layout.gpus_per_node + gpu

    if transport == "node":
        return [rail(node) for node in {layout.node(slot) for slot in served_by} - {home}]
    if transport == "allgather":
        return [rail(node) for node in range(layout.num_nodes) if node != home]
    ranks = [layout.rank(slot) for slot in served_by]
    return ranks if transport == "assignment" else list(set(ranks))


@lru_cache(maxsize=100_000)
def token_prices(
    layout: Map, experts: tuple[int, ...], home: int, choice: str, transport: str, link: tuple[tuple[float, ...], ...]
) -> tuple[float, ...]:
    """Expected cost of the copies of one token to each node; any GPU of the home node may have the token."""
    price = [0.0] * layout.num_nodes
    for probability, served_by in outcomes(layout, experts, home, choice):
        for gpu in range(layout.gpus_per_node):
            source = home * layout.gpus_per_node + gpu
            for rank in copies(layout, served_by, home, gpu, transport):
                price[rank // layout.gpus_per_node] += probability * link[source][rank] / layout.gpus_per_node
    return tuple(price)


def layer_links(
    layout: Map, sets: Sequence[tuple[int, ...]], homes: Sequence[int], choice: str, transport: str, cluster: Any
) -> list[list[float]]:
    """Mean price of tokens with these top-k sets, from home node to node; home -1 is the mean over all nodes."""
    link, links = link_costs(cluster), [[0.0] * layout.num_nodes for _ in range(layout.num_nodes)]
    for experts, given in zip(sets, homes, strict=True):
        possible = range(layout.num_nodes) if given == -1 else [given]
        for home in possible:
            prices = token_prices(layout, tuple(sorted(experts)), home, choice, transport, link)
            for node, price in enumerate(prices):
                links[home][node] += price / len(possible) / len(sets)
    return links


def busiest(amounts: Sequence[float]) -> float:
    """The most over the mean; 1 where there is nothing."""
    return max(amounts) * len(amounts) / sum(amounts) if any(amounts) else 1.0


def grouped(load_of_slot: Sequence[float], size: int) -> list[float]:
    """Loads of groups of `size` consecutive slots: ranks, or nodes."""
    return [sum(load_of_slot[start : start + size]) for start in range(0, len(load_of_slot), size)]


def imbalance(loads: Sequence[float], speeds: Sequence[float]) -> float:
    """Time of the slowest over the time if the work were shared in proportion to speed; max / mean if all are alike.

    1 where there is no load: every token's set was empty.
    """
    if not any(loads):
        return 1.0
    slowest = max(load / speed for load, speed in zip(loads, speeds, strict=True))
    return slowest / (sum(loads) / sum(speeds))
