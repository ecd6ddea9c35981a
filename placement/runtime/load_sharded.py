"""A Hugging Face model of which each rank reads its own experts alone: for models that no rank could hold."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from placement.core.choices import REPLICA_CHOICE
from placement.core.cluster import Cluster
from placement.core.huggingface import find_experts, library
from placement.core.placement import Placement
from placement.errors import InputError
from placement.runtime.attach_model import Attached, attach_slots, check_fits
from placement.runtime.capacity import CapacityPolicy
from placement.runtime.dequantize import dequantize
from placement.runtime.dispatcher import FLAT
from placement.runtime.layer import UNLIMITED
from placement.runtime.slot_checkpoint import SlotCheckpoint
from placement.runtime.slot_weights import SlotWeights
from placement.runtime.transport.base import Mesh

CONFIG, GENERATION = "config.json", "generation_config.json"
READ_AHEAD_OFF = "HF_DEACTIVATE_ASYNC_LOAD"  # transformers' own switch
_SHOWN = 4


def load_sharded(
    checkpoint: str | Path,
    placement: Placement,
    mesh: Mesh,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    hops: str = FLAT,
    choice: str = REPLICA_CHOICE,
    cluster: Cluster | None = None,
    capacity: CapacityPolicy = UNLIMITED,
    fp8: bool = False,
) -> tuple[Any, Attached]:
    """The model of a checkpoint with this rank's experts, attached: what `attach` does with a model that is loaded.

    The model is made on the device `meta` with as many experts as the rank has slots, and transformers fills it: it
    renames and fuses tensors as for the whole model. Weights in float8 with block scales, and in MXFP4, become `dtype`
    as they are read, one expert at a time. The host holds the rank's share, and one layer's experts twice.

    Args:
        checkpoint: Folder of a Hugging Face checkpoint in safetensors.
        placement: The map to serve by.
        mesh: This rank's groups.
        dtype: Type of the weights; None: what the configuration says, else that of the first tensor.
        device: Where the model goes once it is read.
        hops: See `Dispatcher`.
        choice: See `ReplicaChooser`.
        cluster: See `ReplicaChooser`.
        capacity: See `CapacityPolicy`.
        fp8: See `Dispatcher`.

    Returns:
        The model, and what `attach` gives; it cannot be detached, since no rank has the other experts.

    Raises:
        InputError: The checkpoint cannot be read, lacks tensors, or is of a model that is not understood.
        MapError: The map is for another model or mesh.
    """
    source = SlotCheckpoint(checkpoint, placement, mesh.rank)
    model = _load(source, placement, dtype)
    modules = find_experts(model)
    check_fits(modules, placement, mesh)
    model.to(device)
    slots_L = [
        SlotWeights({name: one.detach() for name, one in module._parameters.items() if one is not None})
        for module in modules.experts_L
    ]
    attached = attach_slots(
        model,
        modules,
        placement,
        mesh,
        slots_L,
        hops=hops,
        choice=choice,
        cluster=cluster,
        capacity=capacity,
        fp8=fp8,
        keep_weights=False,
    )
    return model, attached


def _load(source: SlotCheckpoint, placement: Placement, dtype: torch.dtype | None) -> Any:
    """The model by transformers' own loader, its experts those of the slots."""
    try:
        transformers: Any = import_module("transformers")
    except ImportError:
        raise InputError("load_sharded needs transformers; install version 5 of it") from None
    folder = source.folder
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder / CONFIG} cannot be read by {library()}: {_line(error)}") from None
    name = (getattr(config, "architectures", None) or ["none"])[0]
    known = getattr(transformers, name, None)
    if known is None:
        raise InputError(f"{folder / CONFIG} names the architecture {name}, which {library()} does not have")
    dtype = dtype or getattr(config, "dtype", None) or source.dtype()
    tensors, quantized = dict(source.tensors), getattr(config, "quantization_config", None)
    if quantized is not None:
        told = quantized if isinstance(quantized, dict) else quantized.to_dict()
        tensors = dequantize(source.tensors, source.types, told, dtype, folder)
        del config.quantization_config
    try:
        with _one_parameter_at_a_time():
            model, told = _of_slots(known, placement.slots_per_gpu).from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                dtype=dtype,
                output_loading_info=True,
            )
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{library()} cannot make {name} of {folder}: {_line(error)}") from None
    for what in ("missing_keys", "mismatched_keys"):
        if wrong := sorted(map(str, told[what])):
            raise InputError(
                f"{folder} has not all of {name}: {what.partition('_')[0]} are {', '.join(wrong[:_SHOWN])} of "
                f"{len(wrong)}; fetch all of its files"
            )
    model.__class__ = known
    if (folder / GENERATION).is_file() and model.can_generate():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model


def _of_slots(known: Any, slots: int) -> Any:
    """The class `known` with experts of `slots` slots; their number is told by the map, so the rest stays as it is."""

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        known.__init__(self, *args, **kwargs)
        for layer, module in enumerate(find_experts(self).experts_L):
            for name, weight in module._parameters.items():
                if weight is None:
                    continue
                if weight.shape[0] != module.num_experts:
                    raise InputError(
                        f"{name} of expert layer {layer} has shape {list(weight.shape)} under {library()}, where "
                        f"{module.num_experts} experts come first; use a version that was tested"
                    )
                empty = torch.empty((slots, *weight.shape[1:]), dtype=weight.dtype, device="meta")
                module._parameters[name] = torch.nn.Parameter(empty, requires_grad=False)

    return type(known.__name__, (known,), {"__init__": init, "__module__": known.__module__})


@contextmanager
def _one_parameter_at_a_time() -> Iterator[None]:
    """transformers reads the tensors of a parameter when it makes the parameter, not all ahead in threads."""
    before = os.environ.get(READ_AHEAD_OFF)
    os.environ[READ_AHEAD_OFF] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[READ_AHEAD_OFF]
        else:
            os.environ[READ_AHEAD_OFF] = before


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
