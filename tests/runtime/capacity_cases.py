"""Maps of four ranks, and what a capacity keeps there."""

from __future__ import annotations

from typing import Any

from moe import Tokens, make_placement

from placement import Placement
from placement.runtime import CapacityPolicy, Dispatcher, LayerMap, Lockstep, Mesh
from placement.runtime.decision import RankCapacity

EXPERTS, TOP_K, SLOTS = 10, 3, 3
SHAPE = (2, 2)
PLACEMENT = make_placement(*SHAPE, SLOTS, EXPERTS, TOP_K)
Kept = set[tuple[int, int, int]]  # (rank, row, slot)


def decided(
    policy: CapacityPolicy,
    tokens: list[Tokens],
    priorities: list[Any],
    loads: list[Any],
    placement: Placement = PLACEMENT,
) -> tuple[Kept, list[Any]]:
    """What the runtime keeps, and the slots that had been chosen."""
    layer_map = LayerMap.of(placement, 0)

    def program(mesh: Mesh) -> tuple[Any, Any]:
        mine = tokens[mesh.rank]
        slots = Dispatcher(mesh, layer_map).choose(mine.ids)
        decision = RankCapacity(policy, layer_map, mesh.world).decide(
            mine.ids, slots, mine.weights, mine.scores, priority=priorities[mesh.rank], load=loads[mesh.rank]
        )
        assert int(decision.dropped) == int((decision.slots[:, :TOP_K] < 0).sum())
        assert int(decision.extra) == int((decision.slots[:, TOP_K:] >= 0).sum())
        assert ((decision.weights != 0) <= (decision.slots >= 0)).all()
        return decision.slots, slots

    kept: Kept = set()
    results = Lockstep(placement.num_nodes, placement.gpus_per_node).run(program)
    for rank, (left, _) in enumerate(results):
        kept |= {(rank, row, slot) for row, slots in enumerate(left.tolist()) for slot in slots if slot >= 0}
    return kept, [slots for _, slots in results]
