"""`sglang-static`: a table for every rank: the nearest copy of an expert, else one that a fair, seeded pick gave it.

SGLang 0.5.23, `srt/eplb/expert_location.py:compute_logical_to_rank_dispatch_physical_map`, its default. Every rank
picks for all ranks that have no nearest copy, and keeps its own part. By then the rank has dropped all but the nearest
copy of other experts, so its stream of random numbers (seed 42) is not that of the next rank: the picks are fair in the
mean alone. The stream goes through all hidden layers, the first layer first, so a table depends on the layers before
its own. Where these are not known, as when a layer is placed, any table is taken to be as likely: `sglang-dynamic`.
"""

from __future__ import annotations

import random
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.core.shape import Shape
from placement.cost.choices.base import Floats, InModel
from placement.cost.choices.by_rank import expert_of_C
from placement.cost.choices.sglang_dynamic import SGLangDynamic, nearest
from placement.cost.lookup_tables import LayerTables

SEED = 42
Ints = npt.NDArray[np.int64]


class SGLangStatic(SGLangDynamic):
    name = "sglang-static"

    def chance_GC(self, tables: LayerTables, cluster: Cluster, within: InModel | None = None) -> Floats:
        if within is None:
            return super().chance_GC(tables, cluster)
        nearest_GC, fair_GE = nearest(tables, cluster)
        rows_HP, expert_C, engine_G = within.rows_HP, expert_of_C(tables), cluster.engine_rank_G()
        shape = Shape(**(cluster.sizes() | {"rank_hosts": ()}))  # SGLang's nodes are of consecutive ranks
        picked_GE = _picked_HGE(rows_HP.tobytes(), len(rows_HP), len(tables.host_E), shape)[within.row]
        picked_GC = picked_GE[engine_G][:, expert_C] // cluster.slots_per_gpu == engine_G[tables.slot_rank]
        return np.where(fair_GE[:, expert_C], picked_GC, nearest_GC)


@lru_cache(maxsize=8)
def _picked_HGE(rows: bytes, num_rows: int, num_experts: int, shape: Shape) -> Ints:
    """The slot that the fair pick gives each rank for each expert, int64 [H, G, E]; -1 where a copy is the nearest.

    Args:
        rows: The map of all hidden layers, int64 [H, P], as the engine numbers slots.
    """
    rows_HP = np.frombuffer(rows, dtype=np.int64).reshape(num_rows, -1)
    streams = [random.Random(SEED) for _ in range(shape.num_ranks)]
    picked_HGE = np.full((num_rows, shape.num_ranks, num_experts), -1, dtype=np.int64)
    ranks = np.arange(shape.num_ranks)[:, None]
    for row_P, picked_GE in zip(rows_HP, picked_HGE, strict=True):
        several_E = np.flatnonzero(np.bincount(row_P, minlength=num_experts) > 1)
        for expert in several_E.tolist():
            slots = np.flatnonzero(row_P == expert)
            at = slots // shape.slots_per_gpu
            near_GS = ranks // shape.gpus_per_node == at // shape.gpus_per_node
            narrows_G = near_GS.any(axis=1) & ~near_GS.all(axis=1)
            far = np.flatnonzero(~narrows_G & ~(ranks == at).any(axis=1)).tolist()
            for place, rank in enumerate(far):
                picked_GE[rank, expert] = _fair_choices(slots.tolist(), len(far), streams[rank])[place]
    picked_HGE.setflags(write=False)
    return picked_HGE


def _fair_choices(slots: list[int], size: int, stream: random.Random) -> list[int]:
    """As SGLang's function of this name: each slot as often as the others, the rest drawn, then shuffled."""
    times, rest = divmod(size, len(slots))
    chosen = slots * times + stream.sample(slots, k=rest)
    stream.shuffle(chosen)
    return chosen
