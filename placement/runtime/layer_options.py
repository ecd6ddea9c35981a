"""How the layers of a model are served, and the layers of one rank that are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from placement.core.choices import REPLICA_CHOICE
from placement.core.cluster import Cluster
from placement.core.placement import Placement
from placement.errors import OptionError
from placement.runtime.capacity import CapacityPolicy
from placement.runtime.dispatcher import FLAT, Dispatcher
from placement.runtime.layer import UNLIMITED, MoELayer
from placement.runtime.layer_map import LayerMap
from placement.runtime.module_experts import ModuleExperts
from placement.runtime.static import StaticLayer
from placement.runtime.transport.base import Mesh


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerOptions:
    """What `attach` is given for all layers; `tokens` is None without `graph`."""

    hops: str = FLAT
    choice: str = REPLICA_CHOICE
    cluster: Cluster | None = None
    capacity: CapacityPolicy = UNLIMITED
    fp8: bool = False
    graph: bool = False
    tokens: int | None = None
    overlap: bool = False

    def __post_init__(self) -> None:
        if self.graph != (self.tokens is not None):
            raise OptionError(
                f"graph={self.graph} and tokens={self.tokens} do not fit: graph=True needs tokens=, the most "
                "tokens of a rank in a forward, for its fixed shapes, and nothing else takes it"
            )

    def layers(
        self,
        mesh: Mesh,
        placement: Placement,
        experts: ModuleExperts,
        fixed: StaticLayer | None,
        *,
        layer: int,
        dtype: torch.dtype,
    ) -> tuple[MoELayer, StaticLayer | None]:
        """A layer by this map, and with `graph` the same in fixed shapes; all ranks make it together.

        fixed  the one in fixed shapes for the map before: it goes over to this one, with the graphs that captured it
        """
        dispatcher = Dispatcher(
            mesh,
            LayerMap.of(placement, layer),
            hops=self.hops,
            choice=self.choice,
            cluster=self.cluster,
            fp8=self.fp8,
            device=experts.device,
            any_map=self.graph,
        )
        eager = MoELayer(dispatcher, experts, self.capacity)
        if self.tokens is None:
            return eager, None
        if fixed is not None:
            fixed.use(dispatcher)
            return eager, fixed
        top_k = placement.model.top_k
        return eager, StaticLayer(
            dispatcher, experts, tokens=self.tokens, top_k=top_k, dtype=dtype, capacity=self.capacity
        )
