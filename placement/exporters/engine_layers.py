"""Layers as engines count them: all decoder layers or MoE layers only, with or without those for MTP.

MTP (multi-token prediction) layers have the highest numbers, from `Model.num_hidden_layers` on.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from placement.core.model import ranges
from placement.core.placement import Placement, spans
from placement.errors import InputError, MapError, OptionError


def trivial_P(placement: Placement) -> npt.NDArray[np.int64]:
    """The map that engines use where none is given, by their slots: all experts in order, then again from the first."""
    return np.asarray(np.arange(placement.num_slots) % placement.model.num_experts)


def main_LP(placement: Placement) -> npt.NDArray[np.int32]:
    """The map without MTP layers, by the engine's ranks."""
    return placement.engine_LP()[: placement.model.num_main_layers]


def hidden_HP(placement: Placement) -> npt.NDArray[np.int64]:
    """A row for every decoder layer, [H, P]: the map's for MoE layers, the trivial one for dense layers.

    Where `num_hidden_layers` is unknown the last MoE layer is taken for the last layer of all.
    """
    model = placement.model
    layer_ids = model.layer_ids[: model.num_main_layers]
    rows = np.tile(trivial_P(placement), (model.num_hidden_layers or layer_ids[-1] + 1, 1))
    rows[list(layer_ids)] = main_LP(placement)
    return rows


def layer_hints(placement: Placement, *, engine: str, hidden: bool) -> tuple[str, ...]:
    """What a user should check or know of layers in a file without MTP layers."""
    model = placement.model
    hints = []
    if hidden and model.num_hidden_layers is None:
        hints.append(
            f"check: layer {model.layer_ids[-1]} was taken for the last of the model; if it has more layers, dense or "
            "not, give --num-hidden-layers"
        )
    left_out = model.layer_ids[model.num_main_layers :]
    if left_out:
        hints.append(f"MTP layers {', '.join(map(str, left_out))} are left out: {engine} places them in its own way")
    return tuple(hints)


def check_several_ranks(placement: Placement, engine: str) -> None:
    """Raise MapError for one GPU, where the engine would leave the map aside without a word."""
    if placement.num_ranks == 1:
        raise MapError(f"the map is for 1 GPU: {engine} ignores maps unless expert parallelism is on; use 2 or more")


def redundant_told(placement: Placement) -> str:
    """How many experts are redundant: a number a layer, or one for each group of layers."""
    model, slots_L = placement.model, placement.slots_L
    told = [
        (int(slots) * placement.num_ranks - model.num_experts, np.array(model.layer_ids)[slots_L == slots].tolist())
        for slots in np.unique(slots_L)[::-1]
    ]
    return f"{told[0][0]} a layer" if len(told) == 1 else ", ".join(f"{n} in {spans(layers)}" for n, layers in told)


def check_once(placement: Placement, why: str) -> None:
    """Raise MapError where a GPU holds an expert several times; `why` says what becomes of such a map."""
    wasted_LP = placement.wasted_LP()
    if wasted_LP.any():
        layer, slot = np.argwhere(wasted_LP)[0].tolist()
        rank = placement.engine_rank_G()[slot // placement.slots_per_gpu]
        raise MapError(
            f"layer {placement.model.layer_ids[layer]}: GPU {rank} holds expert "
            f"{placement.phy2log_LP[layer, slot]} more than once, as GPUs do in {wasted_LP.sum()} slots: {why}; fill "
            "these slots first: placement solve TRACES --from MAP"
        )


def described(
    placement: Placement,
    *,
    layer_ids: tuple[int, ...] | None = None,
    num_hidden_layers: int | None = None,
    num_mtp_layers: int = 0,
) -> Placement:
    """The same map of a model of which more is known.

    layer_ids          absolute numbers of the MoE layers, where the map numbers them otherwise
    num_hidden_layers  see `Model`
    num_mtp_layers     MTP layers that the engine will ask for; those that the map lacks get the trivial map

    Raises OptionError where these contradict the map.
    """
    model = placement.model
    if layer_ids is not None and len(layer_ids) != model.num_layers:
        raise OptionError(f"--moe-layers names {len(layer_ids)} layers; the map has {model.num_layers}: name each once")
    known = model.num_hidden_layers
    if known is not None and num_hidden_layers not in (None, known):
        raise OptionError(f"--num-hidden-layers {num_hidden_layers} is not what the map says, {known}; leave it out")
    hidden = known if num_hidden_layers is None else num_hidden_layers
    try:
        model = replace(model, layer_ids=layer_ids or model.layer_ids, num_hidden_layers=hidden)
    except InputError as error:
        raise OptionError(str(error)) from None
    if num_hidden_layers is not None and layer_ids is None:
        last, count = model.layer_ids[model.num_main_layers - 1], model.num_layers
        as_they_are = ranges(model.layer_ids, to="-", then=",")
        if last != num_hidden_layers - 1:
            raise OptionError(
                f"the last MoE layer of the map is layer {last} of {num_hidden_layers}; if the map counts MoE layers "
                f"only, give --moe-layers {num_hidden_layers - count}-{num_hidden_layers - 1}; if the layers after it "
                f"are dense, give --moe-layers {as_they_are}"
            )
    phy2log_LP = placement.phy2log_LP
    if num_mtp_layers:
        if hidden is None:
            raise OptionError(f"--mtp-layers {num_mtp_layers} are numbered after the others; give --num-hidden-layers")
        missing = tuple(layer for layer in range(hidden, hidden + num_mtp_layers) if layer not in model.layer_ids)
        model = replace(model, layer_ids=(*model.layer_ids, *missing))
        trivial = placement.from_engine(trivial_P(placement)).astype(np.int32)
        phy2log_LP = np.vstack([phy2log_LP, *[trivial] * len(missing)])
    return replace(placement, model=model, phy2log_LP=phy2log_LP)


def layer_numbers(text: str) -> tuple[int, ...]:
    """`3-60` or `1,3,5-9` as numbers. Raises OptionError."""
    layers: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part)
        if found is None:
            raise OptionError(f"--moe-layers {text!r} is not understood at {part!r}; write 3-60 or 1,3,5-9")
        layers += range(int(found[1]), int(found[2] or found[1]) + 1)
    if not layers or any(a >= b for a, b in pairwise(layers)):
        raise OptionError(f"--moe-layers {text!r} must go up; write 3-60 or 1,3,5-9")
    return tuple(layers)
