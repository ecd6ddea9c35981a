"""A Hugging Face model of which each rank reads its own experts alone: for models that no rank could hold."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
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
from placement.runtime.attach_model import attach_slots, check_fits
from placement.runtime.attached import Attached
from placement.runtime.capacity import CapacityPolicy
from placement.runtime.dequantize import dequantize
from placement.runtime.dispatcher import FLAT
from placement.runtime.layer import UNLIMITED
from placement.runtime.layer_options import LayerOptions
from placement.runtime.model_folder import (
    CONFIG,
    GENERATION,
    architecture,
    errors_as_one_line,
    generation_config,
    json_object,
    one_line,
)
from placement.runtime.slot_checkpoint import SlotCheckpoint
from placement.runtime.slot_weights import SlotWeights
from placement.runtime.transport.base import Mesh

READ_AHEAD_OFF = "HF_DEACTIVATE_ASYNC_LOAD"  # transformers' own switch
_LAYER = re.compile(r"\.layers\.(\d{1,6})\.")
_SHOWN = 4
_log = logging.getLogger(__name__)


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
    graph: bool = False,
    tokens: int | None = None,
    overlap: bool = False,
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
        graph: See `attach`.
        tokens: See `attach`.
        overlap: See `attach`.

    Returns:
        The model, and what `attach` gives; it cannot be detached, since no rank has the other experts.

    Raises:
        InputError: The checkpoint cannot be read, lacks tensors or has others, is of a model that is not understood, or
            the device is not there.
        MapError: The map is for another model or mesh.
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
    _check_device(device)
    source = SlotCheckpoint(checkpoint, placement, mesh.rank)
    model = _load(source, placement, dtype)
    modules = find_experts(model)
    check_fits(modules, placement, mesh)
    model.to(device)
    slots_L = [
        SlotWeights({name: one.detach() for name, one in module._parameters.items() if one is not None})
        for module in modules.experts_L
    ]
    return model, attach_slots(model, modules, placement, mesh, slots_L, options, keep_weights=False)


def _check_device(device: torch.device | str) -> None:
    try:
        torch.empty(0, device=device)
    except Exception as error:  # torch raises AssertionError, RuntimeError and others, by the device
        raise InputError(f"device {str(device)!r} cannot be used by this torch: {one_line(error)}") from None


def _load(source: SlotCheckpoint, placement: Placement, dtype: torch.dtype | None) -> Any:
    """The model by transformers' own loader, its experts those of the slots."""
    try:
        transformers: Any = import_module("transformers")
    except ImportError:
        raise InputError("load_sharded needs transformers; install version 5 of it") from None
    folder = source.folder
    told = json_object(folder / CONFIG)
    quantized = told.get("quantization_config")
    if quantized is not None and not isinstance(quantized, dict):
        raise InputError(f"{folder / CONFIG} has quantization_config {quantized!r}; an object is needed, or none")
    with errors_as_one_line(f"{folder / CONFIG} cannot be read by {library()}"):
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    known = architecture(transformers, told.get("architectures"), folder / CONFIG)
    generation = None
    if (folder / GENERATION).is_file() and known.can_generate():
        generation = generation_config(transformers, folder)
    dtype = dtype or getattr(config, "dtype", None) or source.dtype()
    tensors = dequantize(source.tensors, source.types, quantized, dtype, folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with errors_as_one_line(f"{library()} cannot make {known.__name__} of {folder}"), _one_parameter_at_a_time():
        model, loaded = _of_slots(known, placement.slots_per_gpu).from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused by name below
        )
    _check_loaded(loaded, known.__name__, folder, config)
    model.__class__ = known
    if generation is not None:
        model.generation_config = generation
    return model


def _check_loaded(loaded: Mapping[str, Any], name: str, folder: Path, config: Any) -> None:
    """Raises InputError unless the tensors are those of the model; transformers leaves out what its class ignores."""
    unlike = (f"{key} {list(has)} for {list(wanted)}" for key, has, wanted in loaded["mismatched_keys"])
    for what, wrong in (("missing", sorted(loaded["missing_keys"])), ("of another shape", sorted(unlike))):
        if wrong:
            raise InputError(
                f"{folder} has not all of {name}: {what} are {', '.join(wrong[:_SHOWN])} of {len(wrong)}; fetch all of "
                "its files"
            )
    more = sorted(loaded["unexpected_keys"])
    wrong = [key for key in more if not _of_drafting(key, config)]
    if len(more) > len(wrong):
        _log.info("%s: left out %d tensors of layers that draft tokens (MTP)", folder, len(more) - len(wrong))
    if wrong:
        raise InputError(
            f"{folder} has more than {name} under {library()}: {', '.join(wrong[:_SHOWN])} of {len(wrong)} tensors "
            f"without a place; check architectures in {CONFIG}"
        )


def _of_drafting(key: str, config: Any) -> bool:
    """Whether a tensor is of the MTP layers that the configuration counts behind the decoder's."""
    first, more = (getattr(config, name, None) or 0 for name in ("num_hidden_layers", "num_nextn_predict_layers"))
    layer = _LAYER.search(key)
    return layer is not None and first <= int(layer[1]) < first + more


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
