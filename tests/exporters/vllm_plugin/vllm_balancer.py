"""What vLLM's balancer has, as far as the plugin looks."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from placement import Placement
from placement.exporters import get_exporter
from placement.exporters.vllm_plugin import VARIABLE
from placement.testing.exporters import small_placement

PROJECT = Path(__file__).parents[3] / "pyproject.toml"

GROUP = "vllm.general_plugins"


class Balancer:
    """As vLLM's `EplbState` is used."""

    def __init__(self, *, use_async: bool = False) -> None:
        self.parallel_config = SimpleNamespace(eplb_config=SimpleNamespace(use_async=use_async))
        self.expert_rearrangement_step_interval = 3000
        self.models: list[Any] = []
        self.policy: Any = None
        self.expert_rearrangement_step = 0

    def add_model(self, model: Any, model_config: Any, model_name: str | None = None) -> None:
        self.models.append((model, model_config, model_name))
        self.policy, self.expert_rearrangement_step = "default", 2250


class Default:
    """As vLLM's `DefaultEplbPolicy` is asked."""

    @classmethod
    def rebalance_experts(
        cls, weight: Any, num_replicas: int, num_groups: int, num_nodes: int, num_ranks: int,
        old_global_expert_indices: Any = None,
    ) -> Any: ...  # fmt: skip


def model(**other: int) -> Any:
    sizes = {"num_moe_layers": 2, "num_logical_experts": 6, "num_physical_experts": 8, "num_local_physical_experts": 2}
    return SimpleNamespace(**(sizes | other))


def on(num_ranks: int, slots_per_gpu: int = 2, **other: Any) -> Placement:
    """A map of the model of `small_placement` on other GPUs of one node."""
    rows = np.arange(num_ranks * slots_per_gpu) % 6
    shape = {"num_nodes": 1, "gpus_per_node": num_ranks, "slots_per_gpu": slots_per_gpu}
    return Placement(model=replace(small_placement().model, **other), **shape, phy2log_LP=np.stack([rows, rows[::-1]]))


def named(paths: list[Path], maps: list[Placement], monkeypatch: pytest.MonkeyPatch) -> None:
    for path, placement in zip(paths, maps, strict=True):
        path.write_bytes(get_exporter("vllm-plugin").export(placement).content)
    monkeypatch.setenv(VARIABLE, os.pathsep.join(map(str, paths)))
