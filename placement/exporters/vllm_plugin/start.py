"""Makes vLLM's expert balancer answer with the map of a file; loaded only within vLLM.

One method of vLLM is wrapped, `EplbState.add_model`, which builds the balancer's state once weights are loaded: after
it the balancer's policy is ours, and the next step is the one that rearranges. Weights move as in any rearrangement.
The plugin says which vLLM it sees: of a version that it was not tested with, it wraps the method with a warning where
names and arguments are those that it knows, and stops vLLM otherwise.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from placement.core.placement import Placement, check_same_slots
from placement.documents.placement import load_placement
from placement.errors import InputError, MapError
from placement.exporters.engine_layers import main_LP

TESTED = ("0.33.0",)  # versions of vLLM whose balancer was run with the plugin, by `make test-engines`
MADE_FOR = f"vLLM {TESTED[-1]}"
ASKED = ("weight", "num_replicas", "num_groups", "num_nodes", "num_ranks", "old_global_expert_indices")
STATE = ("policy", "expert_rearrangement_step", "expert_rearrangement_step_interval")
log = logging.getLogger(f"vllm.{__name__}")  # below vLLM's own logger: its handlers print what is said here


def start_from(path: str) -> None:
    """Wrap vLLM's balancer. `path` is one file, or several with `os.pathsep` between them, a map for each size that
    elastic EP may take. Raises InputError on a bad file and on a vLLM that has no such balancer."""
    placements = maps_by_size([path] if Path(path).exists() else path.split(os.pathsep))
    try:
        from vllm.distributed.eplb.eplb_state import EplbState
        from vllm.distributed.eplb.policy import DefaultEplbPolicy
    except ImportError as error:
        raise InputError(f"this vLLM ({seen()}) has no expert balancer as {MADE_FOR} has: {error}") from None
    add_model = EplbState.add_model
    if hasattr(add_model, "placed_from"):
        return
    policy = fixed_policy(placements, DefaultEplbPolicy)
    takes = inspect.signature(add_model)
    if not {"model", "model_name"} <= takes.parameters.keys():
        raise unknown(f"EplbState.add_model takes {', '.join(takes.parameters)}")
    if seen().split("+")[0] in TESTED:
        log.info("expert-placement sees vLLM %s, with which it was tested", seen())
    else:
        log.warning(
            "expert-placement sees vLLM %s and was tested with %s; what it replaces in the balancer has the names "
            "that it knows, so it goes on: compare the model's answers before you trust this version",
            seen(),
            ", ".join(TESTED),
        )

    @functools.wraps(add_model)
    def add_model_placed(self: Any, *args: Any, **kwargs: Any) -> None:
        given = takes.bind(self, *args, **kwargs).arguments
        if not str(given.get("model_name")).endswith("(draft)"):  # as vLLM calls the model that speculates
            check_model(placement_for(placements, given["model"]), given["model"], path)
            check_platform(self.parallel_config.eplb_config.use_async)
        add_model(self, *args, **kwargs)
        if missing := [name for name in STATE if not hasattr(self, name)]:
            raise unknown(f"EplbState has no {', '.join(missing)}")
        self.policy = policy
        self.expert_rearrangement_step = self.expert_rearrangement_step_interval - 1
        log.info("experts will be placed as %s says after the first step", path)

    add_model_placed.placed_from = path  # type: ignore[attr-defined]
    EplbState.add_model = add_model_placed


def seen() -> str:
    """The version of the vLLM that runs."""
    try:
        return metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return str(getattr(sys.modules.get("vllm"), "__version__", "of an unknown version"))


def unknown(what: str) -> InputError:
    """The error where vLLM's balancer is not the one that the plugin knows: vLLM does not start."""
    return InputError(
        f"the expert balancer of this vLLM ({seen()}) is not that of {MADE_FOR}, and would run with another map "
        f"without a word: {what}; use {MADE_FOR}, or start without the plugin"
    )


def maps_by_size(paths: Sequence[str]) -> list[Placement]:
    """The maps of files. Raises InputError, MapError unless vLLM can go from each to the others: elastic EP changes
    the number of GPUs, and leaves the slots of a GPU as they are."""
    placements = [load_placement(path)[0] for path in paths]
    for placement in placements:
        check_same_slots(placement, "vLLM")
    for placement, path in zip(placements[1:], paths[1:], strict=True):
        if not placement.model.same_routing(placements[0].model):
            raise MapError(f"{path} is for another model than {paths[0]}; give maps of one model")
        if placement.slots_per_gpu != placements[0].slots_per_gpu:
            raise MapError(
                f"{path} has {placement.slots_per_gpu} slots a GPU, {paths[0]} has {placements[0].slots_per_gpu}; vLLM "
                "keeps the slots of a GPU when its size changes: give maps with as many"
            )
    sizes = [placement.num_ranks for placement in placements]
    if len(set(sizes)) < len(sizes):
        raise MapError(f"the files are for {', '.join(map(str, sizes))} GPUs; give one map for each number of GPUs")
    return placements


def placement_for(placements: Sequence[Placement], model: Any) -> Placement:
    """The map for as many slots as the model has, else the first."""
    slots = getattr(model, "num_physical_experts", None)
    return next((one for one in placements if one.num_slots == slots), placements[0])


def fixed_policy(placements: Sequence[Placement], default: Any) -> type:
    """A policy, as vLLM's `AbstractEplbPolicy`, that answers with the map for as many GPUs; for other models and sizes
    it is `default`.

    Raises InputError if `default` is asked in another way.
    """
    asked = getattr(default, "rebalance_experts", None)
    if asked is None or tuple(inspect.signature(asked).parameters) != ASKED:
        takes = "no method" if asked is None else ", ".join(inspect.signature(asked).parameters)
        raise unknown(f"{default.__name__}.rebalance_experts takes {takes}")
    known = {}
    for one in placements:
        phy2log_LP = main_LP(one).astype(np.int64)
        known[len(phy2log_LP), one.model.num_experts, one.num_slots, one.num_ranks] = phy2log_LP

    class FixedPolicy(default):  # type: ignore[misc]
        @classmethod
        def rebalance_experts(
            cls,
            weight: Any,
            num_replicas: int,
            num_groups: int,
            num_nodes: int,
            num_ranks: int,
            old_global_expert_indices: Any = None,
        ) -> Any:
            """[layers, num_replicas]: logical expert of every slot, int64 on the CPU."""
            size = (*weight.shape, num_replicas, num_ranks)
            if size in known:
                import torch

                return torch.from_numpy(known[size].copy())
            log.warning("%s layers, experts, slots and GPUs have no map and are placed by vLLM's own policy", size)
            return super().rebalance_experts(
                weight, num_replicas, num_groups, num_nodes, num_ranks, old_global_expert_indices
            )

    return FixedPolicy


def check_model(placement: Placement, model: Any, path: str) -> None:
    """Raise MapError unless the map is for this model on as many GPUs."""
    wanted = {
        "num_moe_layers": placement.model.num_main_layers,
        "num_logical_experts": placement.model.num_experts,
        "num_physical_experts": placement.num_slots,
        "num_local_physical_experts": placement.slots_per_gpu,
    }
    for name, value in wanted.items():
        if not hasattr(model, name):
            raise unknown(f"{type(model).__name__} has no {name}")
        if getattr(model, name) != value:
            raise MapError(
                f"{path} is for {name}={value}, but vLLM runs with {getattr(model, name)}; set num_redundant_experts="
                f"{placement.num_redundant} in --eplb-config and {placement.num_ranks} GPUs, or use another file"
            )


def check_platform(use_async: bool) -> None:
    """Raise InputError where vLLM would skip the rearrangement: on ROCm, without async, it wants a gain in balance."""
    from vllm.platforms import current_platform

    if current_platform.is_rocm() and not use_async:
        raise InputError("on ROCm vLLM skips rearrangements that are not async; set use_async to true in --eplb-config")
