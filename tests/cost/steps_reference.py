"""A replay of a trace in steps, in plain Python and straight from docs/metrics.md; shares no code with the library.

Only the slot that an engine draws for an assignment is asked of the caller (`draw`): a rule of the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

WORD = 1 << 64
GOLDEN = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ x >> 27) * 0x94D049BB133111EB % WORD
    return x ^ x >> 31


def word(number: int, seed: int) -> int:
    return mix((number * GOLDEN + mix((seed + GOLDEN) % WORD)) % WORD)


@dataclass(frozen=True)
class Token:
    """Where a token is in the trace, and the rank that it is at home on."""

    index: int
    rank: int


def dealt(row: Sequence[int], ranks: Sequence[int]) -> list[Token]:
    """Every rank has an equal part of the row; all ranks take their next token at a time."""
    start = [g * len(row) // len(ranks) for g in range(len(ranks) + 1)]
    turns = max((b - a for a, b in pairwise(start)), default=0)
    return [
        Token(row[start[g] + turn], rank)
        for turn in range(turns)
        for g, rank in enumerate(ranks)
        if start[g] + turn < start[g + 1]
    ]


def run_order(
    window: Sequence[int],
    request_of: Sequence[int],
    *,
    prefill: bool,
    nodes: int,
    gpus: int,
    home_of: Sequence[int] | None,
    seed: int,
) -> list[Token]:
    """The tokens of a window (indices into the trace) in the order in which ranks run them."""
    place = {index: number for number, index in enumerate(window)}
    row = sorted(window, key=lambda i: (word(request_of[i] if prefill else place[i], seed), place[i]))
    if home_of is None:
        return dealt(row, range(nodes * gpus))

    def home(index: int) -> int:
        known = home_of[request_of[index]]
        return known if known >= 0 else (word(request_of[index], seed) >> 11) % nodes

    timed = []
    for node in range(nodes):
        mine = dealt([i for i in row if home(i) == node], range(node * gpus, (node + 1) * gpus))
        timed += [(Fraction(2 * number + 1, 2 * len(mine)), node, number, t) for number, t in enumerate(mine)]
    return [t for *_, t in sorted(timed, key=lambda one: one[:3])]


def windows(shards: Sequence[Sequence[int]], kept: Callable[[int], bool], most: int) -> list[list[int]]:
    """Whole shards together, as many as have at most `most` kept tokens; a larger one alone."""
    found: list[list[int]] = []
    for shard in ([i for i in shard if kept(i)] for shard in shards):
        if shard and found and len(found[-1]) + len(shard) <= most:
            found[-1] += shard
        elif shard:
            found.append(list(shard))
    return found


@dataclass(frozen=True)
class Cluster:
    """fare: cost of a copy from node to node; shared: GPUs of a node share what it serves, by their speed."""

    nodes: int
    gpus: int
    speeds: Sequence[float]
    fare: Sequence[Sequence[float]]
    copy_bits: float
    inter_gbps: float
    intra_gbps: float
    expert_bytes: float
    gpu_tflops: float
    memory_gbps: float
    copy_us: float
    latency_us: float
    slots: int
    shared: bool = False


def layer_of_step(
    step: Sequence[tuple[int, Sequence[int]]], cluster: Cluster, transport: str, tokens_per_gpu: int
) -> tuple[float, ...]:
    """(busiest GPU, busiest link, busiest sends, sends, microseconds, then those of each term) of tokens given as (home
    rank, serving slots)."""
    ranks = cluster.nodes * cluster.gpus
    load: list[int] = [0] * ranks
    active: list[set[int]] = [set() for _ in range(ranks)]
    into, out, sends = [0.0] * cluster.nodes, [0.0] * cluster.nodes, 0.0
    for home_rank, slots in step:
        home = home_rank // cluster.gpus
        serving = [slot // cluster.slots for slot in slots]
        for slot, rank in zip(slots, serving, strict=True):
            load[rank] += 1
            active[rank].add(slot)
        visited = [rank // cluster.gpus for rank in serving]
        copies = {
            "node": sorted(set(visited)),
            "rank": [rank // cluster.gpus for rank in sorted(set(serving))],
            "assignment": visited,
            "allgather": list(range(cluster.nodes)),
        }[transport]
        for node in copies:
            sends += cluster.fare[home][node]
            if node != home:
                into[node] += cluster.fare[home][node]
                out[home] += cluster.fare[home][node]
    served = sum(load)
    reads = [len(one) / speed for one, speed in zip(active, cluster.speeds, strict=True)]
    times = [one / speed for one, speed in zip(load, cluster.speeds, strict=True)]
    if cluster.shared:
        nodes = [range(n * cluster.gpus, (n + 1) * cluster.gpus) for n in range(cluster.nodes)]
        speeds = [sum(cluster.speeds[g] for g in gpus) for gpus in nodes]
        times = [sum(load[g] for g in gpus) / speed for gpus, speed in zip(nodes, speeds, strict=True)]
        reads = [sum(len(active[g]) for g in gpus) / speed for gpus, speed in zip(nodes, speeds, strict=True)]
    gpu = max(times) * ranks / served if served else 1.0
    link = max(into + out) * cluster.nodes / sum(out) if sum(out) else 1.0
    sends /= len(step)
    busiest = served / ranks * gpu
    network = tokens_per_gpu * sends * link * cluster.copy_bits / (cluster.inter_gbps * 1e3)
    nvlink = busiest * cluster.copy_bits / (cluster.intra_gbps * 1e3)
    compute = busiest * cluster.expert_bytes / (cluster.gpu_tflops * 1e6)
    memory = max(reads) * cluster.expert_bytes * 8 / (cluster.memory_gbps * 1e3)
    terms = (
        network,
        tokens_per_gpu * sends * cluster.copy_us,
        nvlink,
        *((compute, 0.0) if compute >= memory else (0.0, memory)),
        cluster.latency_us,
    )
    return gpu, link, sends * link, sends, sum(terms), *terms


def over_steps(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and the least that 99% do not exceed."""
    wanted = -(-99 * len(values) // 100)
    return sum(values) / len(values), sorted(values)[wanted - 1]
