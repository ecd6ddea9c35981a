"""What a swap does, as every rank computes it for itself: stages of whole layers, and what is sent in which step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from placement.core.cluster import Cluster
from placement.core.migration import MigrationPlan, check_fits, migration_plan
from placement.core.placement import Placement
from placement.core.relabel import relabel
from placement.errors import OptionError


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """Position of the layer, slot to fill, its expert, the slot to read; ranks of both slots."""

    layer: int
    slot: int
    from_slot: int
    source: int
    target: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Layers that change together.

    placement  the map after the stage: its layers and those before are new, the others old
    steps      copies between ranks, step by step; a rank sends one at most in each
    local      copies within ranks
    """

    placement: Placement
    steps: tuple[tuple[Copy, ...], ...]
    local: tuple[Copy, ...]

    def rows_of(self, rank: int) -> tuple[Copy, ...]:
        """What the rank stages, in the order in which it comes."""
        return tuple(copy for step in (*self.steps, self.local) for copy in step if copy.target == rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapPlan:
    """`migration` counts the moves and bytes of all stages."""

    stages: tuple[Stage, ...]
    migration: MigrationPlan


def swap_plan(
    current: Placement,
    new: Placement,
    *,
    row_bytes: int,
    expert_bytes: int,
    staging_bytes: int | None,
    cluster: Cluster | None,
    relabel_ranks: bool,
) -> SwapPlan:
    """Stages of as many layers, in order, as every rank can stage within `staging_bytes` (None: all at once).

    row_bytes  of a staged slot; a rank stages its incoming slots and one that it sends

    Raises MapError for maps that do not fit, OptionError if one layer is too much for `staging_bytes`.
    """
    cluster = replace(cluster or Cluster.of(new), expert_bytes=expert_bytes)
    for placement in (current, new):
        check_fits(placement, new.model, cluster)
    rows = [
        relabel(old, wanted, cluster, ranks=relabel_ranks)
        for old, wanted in zip(current.phy2log_LP, new.phy2log_LP, strict=True)
    ]
    target = replace(new, phy2log_LP=np.stack(rows))
    migration = migration_plan(current, target, cluster)
    copies = _copies(current, migration)
    need_L = [
        (1 + _most_rows([copy for copy in copies if copy.layer == layer], cluster.num_ranks)) * row_bytes
        for layer in range(len(rows))
    ]
    for layer, need in enumerate(need_L):
        if staging_bytes is not None and need > staging_bytes:
            raise OptionError(
                f"staging_bytes={staging_bytes} is too little: the slots that change on one rank in layer "
                f"{new.model.layer_ids[layer]} take {need} bytes with one to send; give as much or more"
            )
    stages: list[Stage] = []
    begin = 0
    for end in range(1, len(rows) + 1):
        inside = [copy for copy in copies if begin <= copy.layer <= end]  # with the next layer
        fits = staging_bytes is None or (1 + _most_rows(inside, cluster.num_ranks)) * row_bytes <= staging_bytes
        if end == len(rows) or not fits:
            mixed = np.concatenate([target.phy2log_LP[:end], current.phy2log_LP[end:]])
            stages.append(_stage(replace(target, phy2log_LP=mixed), [one for one in inside if one.layer < end]))
            begin = end
    return SwapPlan(stages=tuple(stages), migration=migration)


def _copies(current: Placement, migration: MigrationPlan) -> list[Copy]:
    """The copies with the slot of the source rank that has the expert now."""
    per_rank = current.slots_per_gpu
    found = []
    columns = (migration.layer_M, migration.slot_M, migration.expert_M, migration.source_M, migration.target_M)
    for layer, slot, expert, source, target in zip(*(column.tolist() for column in columns), strict=True):
        held = current.phy2log_LP[layer, source * per_rank : (source + 1) * per_rank]
        from_slot = source * per_rank + int(np.flatnonzero(held == expert)[0])
        found.append(Copy(layer=layer, slot=slot, from_slot=from_slot, source=source, target=target))
    return found


def _stage(placement: Placement, copies: Sequence[Copy]) -> Stage:
    queues: dict[int, list[Copy]] = {}
    for copy in copies:
        if copy.source != copy.target:
            queues.setdefault(copy.source, []).append(copy)
    longest = max((len(queue) for queue in queues.values()), default=0)
    steps = tuple(
        tuple(queues[source][step] for source in sorted(queues) if step < len(queues[source]))
        for step in range(longest)
    )
    return Stage(placement=placement, steps=steps, local=tuple(one for one in copies if one.source == one.target))


def _most_rows(copies: Sequence[Copy], num_ranks: int) -> int:
    return int(np.bincount([copy.target for copy in copies], minlength=num_ranks).max())
