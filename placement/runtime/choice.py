"""Which copy serves each expert of a rank's tokens: the function that the cost model evaluates."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from placement.core.cluster import Cluster
from placement.cost.balanced import RunningLoad
from placement.cost.draw_slots import choose_slots
from placement.cost.replica_choice import replica_choice_code
from placement.errors import OptionError
from placement.runtime.choice_on_device import DeviceChooser
from placement.runtime.layer_map import LayerMap


class ReplicaChooser:
    """Slots for the tokens of one rank in one layer; remembers how many it has seen, and the load that it caused.

    choice   `min-nodes`, `min-nodes-balanced`, `local-first` or `uniform`
    cluster  relative speeds of ranks, for `min-nodes-balanced`

    On a GPU it runs in torch; `min-nodes-balanced`, and `min-nodes` on more than 8 nodes, wait for the ids on the host.
    """

    def __init__(
        self, layer_map: LayerMap, rank: int, choice: str = "min-nodes", *, cluster: Cluster | None = None
    ) -> None:
        if cluster is not None and cluster.num_ranks != layer_map.num_ranks:
            raise OptionError(f"the cluster has {cluster.num_ranks} ranks and the map {layer_map.num_ranks}")
        self.choice = choice
        self.code = replica_choice_code(choice)
        self._map, self._rank = layer_map, rank
        speed_G = np.ones(layer_map.num_ranks) if cluster is None else cluster.speed_G()
        self._running = RunningLoad.start(layer_map.num_ranks, speed_G)
        self._on_device: DeviceChooser | None = None

    def __call__(self, ids_TK: Tensor) -> Tensor:
        """Slot of each assignment, int64 [T, K] on the device of `ids_TK`; -1 where the id is -1."""
        if ids_TK.is_cuda and DeviceChooser.supports(self._map, self.code):
            if self._on_device is None:
                self._on_device = DeviceChooser(self._map, self._rank, self.code, ids_TK.device)
            return self._on_device(ids_TK)
        ids = ids_TK.detach().to("cpu", torch.int64).contiguous().numpy()
        slot_TK = np.empty(ids.shape, dtype=np.int32)
        choose_slots(ids, self._rank, self.code, self._map.tables, self._running, slot_TK)
        return torch.from_numpy(slot_TK).to(ids_TK.device, torch.int64)
