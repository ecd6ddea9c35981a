"""One layer of a placement in the form that the runtime reads, and a number that names the whole map."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from placement.core.cluster import Cluster
from placement.core.placement import Placement, check_same_slots
from placement.core.shape import Shape
from placement.cost.lookup_tables import LayerTables, layer_tables
from placement.errors import MapError


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerMap(Shape):
    """Where the copies of the experts of one layer are.

    Attributes:
        layer: Absolute index of the layer in the model.
        version: 62-bit number that differs between maps: ranks compare it in every exchange.
        tables: The copies of each expert, as the cost model reads them.
        logical_P: Logical expert of each slot.
    """

    layer: int
    num_experts: int
    version: int
    tables: LayerTables
    logical_P: tuple[int, ...]

    def cluster(self) -> Cluster:
        """Nodes and ranks of the map, all alike."""
        return Cluster.of(self)

    @classmethod
    def of(cls, placement: Placement, layer: int) -> LayerMap:
        """The map of one layer.

        Args:
            placement: The maps of all layers.
            layer: Absolute index of the layer.

        Raises:
            MapError: The placement has no such MoE layer, or is for ranks that are not numbered node by node.
        """
        if layer not in placement.model.layer_ids:
            raise MapError(f"the map has no MoE layer {layer}; it has {placement.model.layers_said}")
        if placement.rank_hosts:
            raise MapError(
                f"the map is for ranks that lie on nodes {list(placement.rank_hosts)}; this runtime numbers ranks node "
                "by node, as torchrun does: start them so, and solve without rank_hosts"
            )
        check_same_slots(placement, "the runtime")
        row = placement.phy2log_LP[placement.model.layer_ids.index(layer)]
        return cls(
            layer=layer,
            **placement.sizes(),
            num_experts=placement.model.num_experts,
            version=map_version(placement),
            tables=layer_tables(row, placement.model.num_experts, placement),
            logical_P=tuple(row.tolist()),
        )


def map_version(placement: Placement) -> int:
    """A 62-bit number that is the same for equal maps on equal meshes, whatever their names."""
    state = hashlib.sha256(np.array([*placement.shape, *placement.model.layer_ids], dtype="<i8").tobytes())
    state.update(placement.phy2log_LP.astype("<i4").tobytes())
    return int.from_bytes(state.digest()[:8], "little") >> 2
