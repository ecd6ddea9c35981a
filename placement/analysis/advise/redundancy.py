"""How many redundant experts: what each further slot of a GPU brings, and the memory that it takes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from placement.analysis.advise.bench import Bench
from placement.analysis.advise.map_cost import EPLB, SOLVED, Figures
from placement.core.cluster import Cluster
from placement.pipeline.source import Side
from placement.solvers.options import Options
from placement.workload.workload import Workload

FURTHER_SLOTS = (0, 1, 2, 4)  # slots of a GPU beyond the fewest that hold all experts
SLOT_PRICE = 0.01  # one further slot on every GPU must save this share of the first row's step


@dataclass(frozen=True, slots=True, kw_only=True)
class Redundant:
    """redundant      slots beyond one for each expert, in each layer
    further        slots of a GPU beyond the fewest that hold all experts
    weights_bytes  expert weights of a GPU, all layers
    given_up_bytes what of it the further slots take, which the KV cache then lacks
    kv_share       that over the KV cache of a GPU without further slots, where it is known
    maps           `eplb` and `solved`
    """

    redundant: int
    slots_per_gpu: int
    further: int
    weights_bytes: int
    given_up_bytes: int
    kv_share: float | None
    maps: dict[str, Figures]


@dataclass(frozen=True, slots=True, kw_only=True)
class Redundancy:
    rows: tuple[Redundant, ...]

    @property
    def recommended(self) -> Redundant:
        """The row whose cost is least if every further slot of a GPU is charged SLOT_PRICE of the first row's cost.

        Rows that take all of the KV cache are out of the question.
        """
        first = self.rows[0].maps[SOLVED].cost
        possible = [row for row in self.rows if row.kv_share is None or row.kv_share < 1] or list(self.rows[:1])
        return min(possible, key=lambda row: row.maps[SOLVED].cost / first + SLOT_PRICE * row.further)


def clusters(cluster: Cluster, num_experts: int) -> list[Cluster]:
    """The cluster with as many slots as are tried, its own among them, fewest first."""
    fewest = -(-num_experts // cluster.num_ranks)
    slots = {fewest + further for further in FURTHER_SLOTS} | {cluster.slots_per_gpu}
    tried = [replace(cluster, slots_per_gpu=one) for one in sorted(slots)]
    return [one for one in tried if one.balanced().slots_per_gpu <= num_experts]


def redundancy(
    bench: Bench,
    workload: Workload,
    side: Side,
    cluster: Cluster,
    options: Options,
    known: dict[str, Figures],
    kv_cache_bytes: float | None,
) -> Redundancy:
    """known: the figures of the cluster as it is."""
    model = workload.model
    tried = clusters(cluster, model.num_experts)
    slot_bytes = cluster.expert_bytes * model.num_layers
    rows = []
    for one in tried:
        figures = known
        if one != cluster:
            maps = bench.fit(workload, one, options, baselines=True)
            figures = bench.measure(side, maps, one, options)
        further = one.slots_per_gpu - tried[0].slots_per_gpu
        rows.append(
            Redundant(
                redundant=one.num_slots - model.num_experts,
                slots_per_gpu=one.slots_per_gpu,
                further=further,
                weights_bytes=one.slots_per_gpu * slot_bytes,
                given_up_bytes=further * slot_bytes,
                kv_share=None if kv_cache_bytes is None else round(further * slot_bytes / kv_cache_bytes, 6),
                maps={name: figures[name] for name in (EPLB, SOLVED)},
            )
        )
    return Redundancy(rows=tuple(rows))
