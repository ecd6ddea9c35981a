"""A Hugging Face model that runs its experts by a map, each rank those of its own slots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from placement.core.choices import REPLICA_CHOICE
from placement.core.cluster import Cluster
from placement.core.huggingface import ExpertModules, find_experts
from placement.core.placement import Placement
from placement.errors import MapError, OptionError
from placement.runtime.attached_layer import AttachedLayer
from placement.runtime.capacity import NONE, CapacityPolicy
from placement.runtime.dispatcher import FLAT, Dispatcher
from placement.runtime.forward_marks import ForwardMarks
from placement.runtime.layer import UNLIMITED, MoELayer, StepStats
from placement.runtime.layer_map import LayerMap
from placement.runtime.module_experts import ModuleExperts, check_module, weights_of_module
from placement.runtime.rank_files import RankFiles
from placement.runtime.router_scores import RouterScores, scales_weights
from placement.runtime.slot_weights import SlotWeights
from placement.runtime.swap import Swap
from placement.runtime.transport.base import Mesh


def attach(
    model: Any,
    placement: Placement,
    mesh: Mesh,
    *,
    checkpoint: str | Path | None = None,
    hops: str = FLAT,
    choice: str = REPLICA_CHOICE,
    cluster: Cluster | None = None,
    capacity: CapacityPolicy = UNLIMITED,
    fp8: bool = False,
    keep_weights: bool = True,
) -> Attached:
    """From now on `model` runs its experts on all ranks of `mesh`; every rank attaches its own copy of the model.

    Every rank runs the model equally often; one that has nothing to do calls `join` where the others run a forward.

    Args:
        model: A model of transformers 5; its experts may be on the device `meta` if `checkpoint` is given.
        placement: The map to serve by.
        mesh: This rank's groups.
        checkpoint: Folder of `placement apply` to read this rank's slots from; else they are copied from the model.
        hops: See `Dispatcher`.
        choice: See `ReplicaChooser`.
        cluster: See `ReplicaChooser`.
        capacity: See `CapacityPolicy`.
        fp8: See `Dispatcher`.
        keep_weights: Keep the model's own experts for `detach`; False frees their memory.

    Raises:
        InputError: The model is not understood.
        MapError: The map is for another model or mesh.
    """
    modules = find_experts(model)
    if any(hasattr(one.forward, "attached") for one in modules.experts_L):
        raise OptionError("the model is attached already; call detach() of what attach gave, or swap() for another map")
    check_fits(modules, placement, mesh)
    return attach_slots(
        model,
        modules,
        placement,
        mesh,
        _slots(model, modules, placement, mesh, checkpoint),
        hops=hops,
        choice=choice,
        cluster=cluster,
        capacity=capacity,
        fp8=fp8,
        keep_weights=keep_weights,
    )


def attach_slots(
    model: Any,
    modules: ExpertModules,
    placement: Placement,
    mesh: Mesh,
    slots_L: list[SlotWeights],
    *,
    hops: str,
    choice: str,
    cluster: Cluster | None,
    capacity: CapacityPolicy,
    fp8: bool,
    keep_weights: bool,
) -> Attached:
    """As `attach`, with the weights of this rank's slots in hand, and `check_fits` done."""
    if capacity.mode != NONE and capacity.renormalize is None:
        capacity = replace(capacity, renormalize=scales_weights(model))
    scores = RouterScores(model, modules) if capacity.needs_scores else None
    marks = ForwardMarks(modules.decoder) if capacity.mode != NONE else None
    hooks = [one for one in (scores, marks) if one is not None]
    layers = []
    for index, (layer, module) in enumerate(zip(modules.layer_ids, modules.experts_L, strict=True)):

        def make(placement: Placement, experts: ModuleExperts, layer: int = layer, index: int = index) -> MoELayer:
            layer_map, device = LayerMap.of(placement, layer), slots_L[index].device
            dispatcher = Dispatcher(mesh, layer_map, hops=hops, choice=choice, cluster=cluster, fp8=fp8, device=device)
            return MoELayer(dispatcher, experts, capacity)

        layers.append(
            AttachedLayer(
                module,
                slots_L[index],
                make,
                top_k=placement.model.top_k,
                scores=None if scores is None else scores.of(index),
                marks=marks,
                keep_weights=keep_weights,
            )
        )
    try:
        return Attached(placement, mesh, layers, marks, hooks)
    except BaseException:
        for hook in hooks:
            hook.remove()
        raise


class Attached:
    """What `attach` gives: one rank's model in the group. `placement` is the map in force."""

    def __init__(
        self,
        placement: Placement,
        mesh: Mesh,
        layers: list[AttachedLayer],
        marks: ForwardMarks | None,
        hooks: Sequence[RouterScores | ForwardMarks],
    ) -> None:
        self.mesh, self.layers, self._marks, self._hooks = mesh, layers, marks, hooks
        self.use(placement)  # may raise: the model is changed after it
        for layer in layers:
            layer.take_over()

    @property
    def stats(self) -> list[StepStats | None]:
        """Of the last forward or `join`, one for each layer."""
        return [layer.stats for layer in self.layers]

    @property
    def slots_L(self) -> list[SlotWeights]:
        """The weights in this rank's slots, by layer."""
        return [layer.slots for layer in self.layers]

    def use(self, placement: Placement) -> None:
        """Serve by a map of which the slots have the weights on all ranks: `Swap` calls it."""
        self.placement = placement
        for layer in self.layers:
            layer.use(placement)

    @contextmanager
    def marked(self, *, priority: Tensor | None = None, load: Tensor | None = None) -> Iterator[None]:
        """Forwards inside have tokens with these `priority` and `load`, in the order of the input; see `MoELayer`.

        In `generate` they are those of the prompt: the tokens that follow it, one a row in every forward, have the
        highest `priority` of the prompt and the load 1. Without a capacity policy there is nothing to mark.
        """
        if self._marks is None:
            yield
            return
        self._marks.say(priority, load)
        try:
            yield
        finally:
            self._marks.say(None, None)

    def swap(self, new: Placement, **options: Any) -> Swap:
        """Go to another map, by `Swap`, which has the options; all ranks ask for the same."""
        return Swap(self, new, **options)

    def anyone(self, busy: bool) -> bool:
        """Whether any rank is busy, which all ask before each forward: one that is not joins while others are.

        Raises:
            RankError: A rank fails or does not come in time.
        """
        world = self.mesh.world
        told = world.all_to_all(torch.full((len(world.ranks), 1), int(busy), device=self.slots_L[0].device))
        return any(row[0] for row in world.host(told))

    def join(self) -> None:
        """Take part in one forward of the other ranks without tokens."""
        for layer in self.layers:
            layer.join()

    def detach(self) -> None:
        """The model is as it was before `attach`; it need not be done on all ranks.

        Raises:
            OptionError: The model's own experts were freed.
        """
        for layer in self.layers:
            layer.remove()
        for hook in self._hooks:
            hook.remove()


def _slots(
    model: Any, modules: ExpertModules, placement: Placement, mesh: Mesh, checkpoint: str | Path | None
) -> list[SlotWeights]:
    """The weights of this rank, by layer."""
    slots = slice(mesh.rank * placement.slots_per_gpu, (mesh.rank + 1) * placement.slots_per_gpu)
    if checkpoint is None:
        if any(module.down_proj.is_meta for module in modules.experts_L):
            raise OptionError("the model's experts have no weights; give checkpoint=, a folder of `placement apply`")
        rows = placement.phy2log_LP[:, slots].tolist()
        return [weights_of_module(module, held) for module, held in zip(modules.experts_L, rows, strict=True)]
    files = RankFiles(checkpoint, placement, mesh.rank)
    device = next((one.device for one in model.parameters() if not one.is_meta), torch.device("cpu"))
    return [
        files.weights(layer, module._parameters, device)
        for layer, module in zip(modules.layer_ids, modules.experts_L, strict=True)
    ]


def check_fits(modules: ExpertModules, placement: Placement, mesh: Mesh) -> None:
    """Raise MapError unless the map is for this model and mesh, InputError for experts that are not understood."""
    model = placement.model
    if modules.layer_ids != model.layer_ids or modules.num_experts != model.num_experts:
        raise MapError(
            f"the model has {modules.num_experts} experts in layers {list(modules.layer_ids)[:8]}; the map is for "
            f"{model.num_experts} in layers {list(model.layer_ids)[:8]}; give the map of this model"
        )
    if (placement.num_nodes, placement.gpus_per_node) != (mesh.num_nodes, mesh.gpus_per_node):
        raise MapError(
            f"the map is for {placement.num_nodes} nodes x {placement.gpus_per_node} GPUs and the mesh has "
            f"{mesh.num_nodes} x {mesh.gpus_per_node}; solve for this mesh, or start as many ranks"
        )
    for layer, module in zip(modules.layer_ids, modules.experts_L, strict=True):
        check_module(module, f"layer {layer}")
