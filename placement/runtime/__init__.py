"""Placement maps applied while a model runs: tokens to the right replica, and sums back, on torch.distributed."""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401
except ImportError:
    raise ImportError(
        'placement.runtime needs torch; install it with: pip install "expert-placement[runtime]"'
    ) from None

from placement.runtime.attach import Attached, attach
from placement.runtime.capacity import CapacityPolicy, entropy_load
from placement.runtime.choice import ReplicaChooser
from placement.runtime.dispatcher import Dispatcher
from placement.runtime.experts import GroupedExperts, split_interleaved
from placement.runtime.handle import Arrival, DispatchHandle
from placement.runtime.layer import MoELayer, StepStats
from placement.runtime.layer_map import LayerMap, map_version
from placement.runtime.slot_weights import SlotWeights
from placement.runtime.static import StaticLayer
from placement.runtime.swap import Served, Swap
from placement.runtime.transport.base import Group, Mesh
from placement.runtime.transport.lockstep import Lockstep
from placement.runtime.transport.torch_dist import mesh_of, torch_mesh

__all__ = [
    "Arrival",
    "Attached",
    "CapacityPolicy",
    "DispatchHandle",
    "Dispatcher",
    "Group",
    "GroupedExperts",
    "LayerMap",
    "Lockstep",
    "Mesh",
    "MoELayer",
    "ReplicaChooser",
    "Served",
    "SlotWeights",
    "StaticLayer",
    "StepStats",
    "Swap",
    "attach",
    "entropy_load",
    "map_version",
    "mesh_of",
    "split_interleaved",
    "torch_mesh",
]
