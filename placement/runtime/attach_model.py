"""A Hugging Face model that runs its experts by a map, each rank those of its own slots."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from placement.core.choices import REPLICA_CHOICE
from placement.core.cluster import Cluster
from placement.core.huggingface import ExpertModules, find_experts
from placement.core.placement import Placement
from placement.errors import MapError, OptionError
from placement.runtime.attached import Attached, Hook
from placement.runtime.attached_layer import AttachedLayer
from placement.runtime.capacity import NONE, CapacityPolicy
from placement.runtime.dispatcher import FLAT
from placement.runtime.forward_marks import ForwardMarks
from placement.runtime.layer import UNLIMITED
from placement.runtime.layer_options import LayerOptions
from placement.runtime.module_experts import check_module, weights_of_module
from placement.runtime.rank_files import RankFiles
from placement.runtime.router_scores import RouterScores, scales_weights
from placement.runtime.shared_expert import shared_experts
from placement.runtime.slot_weights import SlotWeights
from placement.runtime.transport.base import Mesh
from placement.runtime.turns import Turns


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
    graph: bool = False,
    tokens: int | None = None,
    overlap: bool = False,
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
        graph: Forwards have fixed shapes and nothing in them waits for the host, so that a CUDA graph can capture them:
            see `StaticLayer`, and `Attached.eager` for forwards that are not to.
        tokens: With `graph`: the most tokens of a rank in a forward; all ranks give the same.
        overlap: The shared expert of each layer is computed while tokens travel to the others.
        keep_weights: Keep the model's own experts for `detach`; False frees their memory.

    Raises:
        InputError: The model is not understood.
        MapError: The map is for another model or mesh.
        OptionError: An option is not allowed, or cannot run in fixed shapes.
    """
    options = LayerOptions(
        hops=hops,
        choice=choice,
        cluster=cluster,
        capacity=capacity,
        fp8=fp8,
        graph=graph,
        tokens=tokens,
        overlap=overlap,
    )
    modules = find_experts(model)
    if any(hasattr(one.forward, "attached") for one in modules.experts_L):
        raise OptionError("the model is attached already; call detach() of what attach gave, or swap() for another map")
    check_fits(modules, placement, mesh)
    slots_L = _slots(model, modules, placement, mesh, checkpoint)
    return attach_slots(model, modules, placement, mesh, slots_L, options, keep_weights=keep_weights)


def attach_slots(
    model: Any,
    modules: ExpertModules,
    placement: Placement,
    mesh: Mesh,
    slots_L: list[SlotWeights],
    options: LayerOptions,
    *,
    keep_weights: bool,
) -> Attached:
    """As `attach`, with the weights of this rank's slots in hand, and `check_fits` done."""
    capacity = options.capacity
    if capacity.mode != NONE and capacity.renormalize is None:
        capacity = replace(capacity, renormalize=scales_weights(model))
        options = replace(options, capacity=capacity)
    hooks: list[Hook] = []
    try:
        scores = marks = None
        if capacity.needs_scores:
            hooks.append(scores := RouterScores(model, modules))
        if capacity.mode != NONE:
            hooks.append(marks := ForwardMarks(modules.decoder))
        shared = shared_experts(model, modules) if options.overlap else []
        hooks += shared
        turns = Turns()
        layers = [
            AttachedLayer(
                module,
                slots_L[index],
                partial(options.layers, mesh, layer=layer, dtype=module.down_proj.dtype),
                top_k=placement.model.top_k,
                scores=None if scores is None else scores.of(index),
                marks=marks,
                shared=shared[index] if shared else None,
                turns=turns,
                keep_weights=keep_weights,
            )
            for index, (layer, module) in enumerate(zip(modules.layer_ids, modules.experts_L, strict=True))
        ]
        return Attached(placement, mesh, layers, marks, hooks, turns)
    except BaseException:
        for hook in hooks:
            hook.remove()
        raise


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
