"""A placement: which logical expert every slot holds. One array; everything else is derived from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.model import Model
from placement.core.shape import Shape
from placement.errors import MapError

NO_SLOT = -1  # in place of an expert


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement(Shape):
    """`phy2log_LP[l, p]` is the logical expert in slot `p` of MoE layer `l`, int32 [L, P].

    A rank may hold an expert several times, as in maps of DeepSeek's EPLB: all but the first of the slots are wasted.
    GPUs may have fewer slots in some layers, each as many as the others: the last of `slots_per_gpu` are -1 there.

    Raises:
        MapError: The map is not sound; `faults` has every fault.
    """

    model: Model
    phy2log_LP: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        self.settle_hosts()
        phy2log = np.asarray(self.phy2log_LP)
        faults = map_faults(
            self.by_engine(phy2log) if phy2log.shape[-1:] == (self.num_slots,) else phy2log,
            num_layers=self.model.num_layers,
            num_experts=self.model.num_experts,
            num_ranks=self.num_ranks,
            slots_per_gpu=self.slots_per_gpu,
            layer_ids=self.model.layer_ids,
        )
        if faults:
            raise MapError(f"the placement map has {len(faults)} faults: {_shorten(faults)}", tuple(faults))
        frozen = np.array(phy2log, dtype=np.int32, order="C")
        frozen.setflags(write=False)
        object.__setattr__(self, "phy2log_LP", frozen)

    def engine_LP(self) -> npt.NDArray[np.int32]:
        """The map as the engine numbers ranks, int32 [L, P]: slot `p` is on its rank `p // slots_per_gpu`."""
        return self.by_engine(self.phy2log_LP)

    def check_hosts(self, cluster: Shape) -> None:
        """Raise MapError unless the map is for an engine that numbers its ranks as this cluster says."""
        if self.rank_hosts != cluster.rank_hosts:
            mine, other = (f"{list(of.rank_hosts)}" if of.rank_hosts else "node by node" for of in (self, cluster))
            raise MapError(
                f"the map is for ranks that lie {mine}, the ranks of the cluster lie {other} (rank_hosts); give the "
                "cluster file that the map was made for, or import the map again with this one"
            )

    @property
    def num_redundant(self) -> int:
        """Slots of a layer beyond one for each expert; of the layers with the most."""
        return self.num_slots - self.model.num_experts

    @property
    def slots_L(self) -> npt.NDArray[np.int64]:
        """Slots of a GPU in every layer, int64 [L]."""
        return np.asarray((self.phy2log_LP >= 0).sum(axis=1) // self.num_ranks)

    def copies_LE(self) -> npt.NDArray[np.int64]:
        """Slots of every expert, int64 [L, E]."""
        num_experts = self.model.num_experts
        return np.stack([np.bincount(row[row >= 0], minlength=num_experts) for row in self.phy2log_LP])

    def wasted_LP(self) -> npt.NDArray[np.bool_]:
        """Slots whose expert an earlier slot of their rank holds too, bool [L, P]."""
        return np.stack([wasted_P(row, self.num_ranks) for row in self.phy2log_LP])


def wasted_P(phy2log_P: npt.NDArray[np.integer], num_ranks: int) -> npt.NDArray[np.bool_]:
    """Slots of one layer whose expert an earlier slot of their rank holds too, bool [P]."""
    held_GS = phy2log_P.reshape(num_ranks, -1)
    order_GS = np.argsort(held_GS, axis=1, kind="stable")
    sorted_GS = np.take_along_axis(held_GS, order_GS, axis=1)
    again_GS = np.zeros(held_GS.shape, dtype=bool)
    again_GS[:, 1:] = (sorted_GS[:, 1:] == sorted_GS[:, :-1]) & (sorted_GS[:, 1:] >= 0)
    wasted_GS = np.empty_like(again_GS)
    np.put_along_axis(wasted_GS, order_GS, again_GS, axis=1)
    return wasted_GS.reshape(-1)


def map_faults(
    phy2log: npt.NDArray[Any],
    *,
    num_layers: int,
    num_experts: int,
    num_ranks: int,
    slots_per_gpu: int,
    layer_ids: tuple[int, ...] | None = None,
) -> list[str]:
    """Every fault of a map, in words; empty if it is sound."""
    num_slots = num_ranks * slots_per_gpu
    if phy2log.ndim != 2 or phy2log.shape != (num_layers, num_slots):
        return [
            f"physical_to_logical has shape {list(phy2log.shape)}; {num_layers} layers of {num_ranks} ranks x "
            f"{slots_per_gpu} slots = {num_slots} slots are needed"
        ]
    if not np.issubdtype(phy2log.dtype, np.integer):
        return [f"physical_to_logical has type {phy2log.dtype}; whole numbers are needed"]
    faults = []
    for index, row in enumerate(phy2log):
        name = f"layer {layer_ids[index] if layer_ids else index}"
        outside = (row < 0) | (row >= num_experts)
        if _ends_early(row.reshape(num_ranks, slots_per_gpu)):
            outside &= row != NO_SLOT
        bad = np.flatnonzero(outside)
        faults += [f"{name}: slot {p} holds id {row[p]}; ids from 0 to {num_experts - 1} are allowed" for p in bad]
        missing = np.setdiff1d(np.arange(num_experts), row)
        if len(missing):
            faults.append(f"{name}: experts {_span(missing.tolist())} have no slot; every expert needs one")
    return faults


def check_same_slots(placement: Placement, what: str) -> None:
    """Raise MapError where GPUs have fewer slots in some layers than in others; `what` needs as many in all."""
    told = told_slots(placement)
    if told:
        raise MapError(
            f"slots of a GPU differ from layer to layer ({told}): {what} needs as many in every layer; `placement "
            "evaluate` and the exports to vllm-ascend and omni-infer take such maps"
        )


def told_slots(placement: Placement) -> str:
    """Where slots of a GPU differ from layer to layer, how many there are in which; else nothing."""
    slots_L, layer_ids = placement.slots_L, np.array(placement.model.layer_ids)
    if (slots_L == placement.slots_per_gpu).all():
        return ""
    return "; ".join(
        f"{slots} in {spans(layer_ids[slots_L == slots].tolist())}" for slots in np.unique(slots_L)[::-1].tolist()
    )


def spans(layers: list[int]) -> str:
    """Ascending layers in few words: layers 0 to 2, 5."""
    ends = [layer for layer in layers if layer + 1 not in layers]
    starts = [layer for layer in layers if layer - 1 not in layers]
    told = ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in zip(starts, ends, strict=True))
    return f"layer{'s' * (len(layers) > 1)} {told}"


def _ends_early(held_GS: npt.NDArray[Any]) -> bool:
    """True if every rank has as many slots, and those that the layer lacks are the last of the rank."""
    empty_S = held_GS[0] == NO_SLOT
    return bool((np.diff(empty_S.astype(np.int8)) >= 0).all() and ((held_GS == NO_SLOT) == empty_S).all())


def _span(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:8])) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")


def _shorten(faults: list[str]) -> str:
    return "; ".join(faults[:20]) + (f"; and {len(faults) - 20} more" if len(faults) > 20 else "")
