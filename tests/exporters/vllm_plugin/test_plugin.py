"""The plugin is found by vLLM, does nothing unless asked, and rearranges to our map when it is."""

from __future__ import annotations

import os
import tomllib
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vllm_balancer import GROUP, PROJECT, Balancer, model, named, on

from placement import Placement
from placement.documents.placement import PlacementFile
from placement.errors import MapError
from placement.exporters.vllm_plugin import VARIABLE, register
from placement.testing.exporters import small_placement


def test_vllm_finds_the_plugin() -> None:
    """The entry point of the project leads to the function."""
    points = tomllib.loads(PROJECT.read_text())["project"]["entry-points"][GROUP]
    assert list(points) == ["expert-placement"]
    assert EntryPoint("expert-placement", points["expert-placement"], GROUP).load() is register


def test_without_the_variable_nothing_happens(monkeypatch: pytest.MonkeyPatch, balancer: type[Balancer]) -> None:
    """vLLM loads every plugin that is installed, in each of its processes."""
    monkeypatch.delenv(VARIABLE, raising=False)
    before = balancer.add_model
    register()
    assert balancer.add_model is before


def test_it_is_loaded_without_vllm_and_torch(run_python: Any) -> None:
    """Importing the plugin loads no more than the package itself does."""
    script = (
        "import sys; import placement.exporters.vllm_plugin as plugin; plugin.register(); "
        "print(sorted({'torch', 'vllm', 'ortools', 'matplotlib'} & set(sys.modules)))"
    )
    result = run_python(script)
    assert (result.code, result.stdout) == (0, "[]\n"), result.stderr


def test_the_first_step_rearranges_to_our_map(asked: Path, balancer: type[Balancer]) -> None:
    """vLLM's own method still runs, once, however often the plugin is registered."""
    pytest.importorskip("torch")
    register()
    register()
    state = balancer()
    state.add_model(model(), "config", model_name="m")
    assert [name for *_, name in state.models] == ["m"]
    assert state.expert_rearrangement_step == 2999
    made = state.policy.rebalance_experts(np.ones((2, 6)), 8, 1, 2, 4)
    assert np.array_equal(made.numpy(), small_placement().phy2log_LP)


def test_elastic_sizes_have_a_map_each(
    tmp_path: Path, balancer: type[Balancer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several files the one for as many GPUs counts: at start, after the group grew and shrank, and on a rank that
    joins; a size without a map is left to vLLM's policy."""
    pytest.importorskip("torch")
    maps = [on(4), on(6), on(3)]
    named([tmp_path / f"{one.num_ranks}.json" for one in maps], maps, monkeypatch)
    register()
    state = balancer()
    state.add_model(model(), "config")
    for one in maps:
        made = state.policy.rebalance_experts(np.ones((2, 6)), one.num_slots, 1, 1, one.num_ranks)
        assert np.array_equal(made.numpy(), one.phy2log_LP)
    assert state.policy.rebalance_experts(np.ones((2, 6)), 10, 1, 1, 5) is None
    balancer().add_model(model(num_physical_experts=12), "config")
    with pytest.raises(MapError, match="num_physical_experts"):
        balancer().add_model(model(num_physical_experts=10), "config")


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (on(6, 1), "keeps the slots of a GPU"),
        (on(4), "4, 4 GPUs"),
        (on(6, top_k=1), "another model"),
    ],
    ids=["slots", "size", "model"],
)
def test_maps_that_no_elastic_group_can_take(
    other: Placement, told: str, tmp_path: Path, balancer: type[Balancer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM would go on with a map of its own, or break, where the sizes do not go together."""
    named([tmp_path / "a.json", tmp_path / "b.json"], [on(4), other], monkeypatch)
    with pytest.raises(MapError, match=told):
        register()


def test_layers_of_every_size_have_the_same_slots(
    tmp_path: Path, balancer: type[Balancer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM has one number of slots for all layers: of several files each is looked at, not only the first."""
    paths = [tmp_path / "four.json", tmp_path / "six.json"]
    rows = np.array([[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5], [0, -1, 1, -1, 2, -1, 3, -1, 4, -1, 5, -1]])
    six = replace(on(6), phy2log_LP=rows)
    for path, placement in zip(paths, (on(4), six), strict=True):
        PlacementFile.of(placement).write(path)
    monkeypatch.setenv(VARIABLE, os.pathsep.join(map(str, paths)))
    with pytest.raises(MapError, match="slots of a GPU differ"):
        register()


def test_a_model_that_drafts_is_no_reason_to_stop(asked: Path, balancer: type[Balancer]) -> None:
    """It has other layers; vLLM adds it before the main model."""
    register()
    state = balancer()
    state.add_model(model(num_moe_layers=1), "config", model_name="m (draft)")
    state.add_model(model(num_moe_layers=1), "config", "m (draft)")
    with pytest.raises(MapError, match="num_moe_layers=2, but vLLM runs with 1"):
        state.add_model(model(num_moe_layers=1), "config")
