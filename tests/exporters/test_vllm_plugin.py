"""The plugin is found by vLLM, does nothing unless asked, and says in words why it cannot do what it is asked."""

from __future__ import annotations

import logging
import os
import re
import sys
import tomllib
from dataclasses import replace
from importlib import metadata
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from placement import Placement
from placement.documents.placement import PlacementFile
from placement.errors import InputError, MapError
from placement.exporters import get_exporter
from placement.exporters.vllm_plugin import VARIABLE, register
from placement.testing.exporters import small_placement

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
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


@pytest.fixture
def balancer(monkeypatch: pytest.MonkeyPatch) -> type[Balancer]:
    """The class in a package that looks like vLLM's."""
    made = type("EplbState", (Balancer,), {"add_model": Balancer.add_model})
    modules = {
        "vllm": {},
        "vllm.platforms": {"current_platform": SimpleNamespace(is_rocm=lambda: False)},
        "vllm.distributed": {},
        "vllm.distributed.eplb": {},
        "vllm.distributed.eplb.eplb_state": {"EplbState": made},
        "vllm.distributed.eplb.policy": {"DefaultEplbPolicy": Default},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return made


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment variable names a placement file."""
    path = tmp_path / "p.json"
    path.write_bytes(get_exporter("vllm-plugin").export(small_placement()).content)
    monkeypatch.setenv(VARIABLE, str(path))
    return path


def model(**other: int) -> Any:
    sizes = {"num_moe_layers": 2, "num_logical_experts": 6, "num_physical_experts": 8, "num_local_physical_experts": 2}
    return SimpleNamespace(**(sizes | other))


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


def on(num_ranks: int, slots_per_gpu: int = 2, **other: Any) -> Placement:
    """A map of the model of `small_placement` on other GPUs of one node."""
    rows = np.arange(num_ranks * slots_per_gpu) % 6
    shape = {"num_nodes": 1, "gpus_per_node": num_ranks, "slots_per_gpu": slots_per_gpu}
    return Placement(model=replace(small_placement().model, **other), **shape, phy2log_LP=np.stack([rows, rows[::-1]]))


def named(paths: list[Path], maps: list[Placement], monkeypatch: pytest.MonkeyPatch) -> None:
    for path, placement in zip(paths, maps, strict=True):
        path.write_bytes(get_exporter("vllm-plugin").export(placement).content)
    monkeypatch.setenv(VARIABLE, os.pathsep.join(map(str, paths)))


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


def test_rocm_without_async_is_refused(asked: Path, balancer: type[Balancer], monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM would skip the rearrangement and serve from its own map."""
    monkeypatch.setattr(sys.modules["vllm.platforms"].current_platform, "is_rocm", lambda: True)
    register()
    with pytest.raises(InputError, match="use_async"):
        balancer().add_model(model(), "config")
    balancer(use_async=True).add_model(model(), "config")


def test_a_vllm_without_such_a_balancer_is_refused(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence would mean that vLLM runs with another map."""
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match="no expert balancer as vLLM"):
        register()


@pytest.mark.parametrize(
    ("version", "level", "words"),
    [
        ("0.33.0", logging.INFO, "sees vLLM 0.33.0, with which it was tested"),
        ("0.33.0+cu129", logging.INFO, r"sees vLLM 0.33.0\+cu129, with which"),
        ("0.33.1", logging.WARNING, "sees vLLM 0.33.1 and was tested with 0.33.0; .* so it goes on"),
        ("0.40.0.dev7", logging.WARNING, "sees vLLM 0.40.0.dev7 and was tested with 0.33.0"),
        (None, logging.WARNING, "sees vLLM dev and was tested with"),
    ],
)
def test_it_says_which_vllm_it_sees(
    version: str | None,
    level: int,
    words: str,
    asked: Path,
    balancer: type[Balancer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once, below vLLM's own logger; an untested version whose balancer has the same names is a warning."""

    def installed(name: str) -> str:
        assert name == "vllm"
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(metadata, "version", installed)
    monkeypatch.setattr(sys.modules["vllm"], "__version__", "dev", raising=False)
    before = balancer.add_model
    with caplog.at_level(logging.INFO):
        register()
        register()
    (found,) = [record for record in caplog.records if "sees vLLM" in record.getMessage()]
    assert found.levelno == level and re.search(words, found.getMessage()) and found.name.startswith("vllm.")
    assert balancer.add_model is not before


def test_a_version_whose_balancer_differs_is_named_and_left_alone(
    asked: Path, balancer: type[Balancer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is replaced where a name is not as expected: the error has the version and what differs."""

    def add_model(self: Any, net: Any, config: Any) -> None: ...

    monkeypatch.setattr(metadata, "version", lambda name: "0.41.2")
    monkeypatch.setattr(balancer, "add_model", add_model)
    with pytest.raises(
        InputError, match=r"this vLLM \(0\.41\.2\) is not that of vLLM 0\.33\.0.*takes self, net, config"
    ):
        register()
    assert balancer.add_model is add_model


def test_a_balancer_that_changed_is_refused(
    asked: Path, balancer: type[Balancer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is set or asked under another name would be set for nothing: vLLM would run with a map of its own."""
    policy = sys.modules["vllm.distributed.eplb.policy"]

    class Renamed:
        @classmethod
        def rebalance(cls, weight: Any) -> Any: ...

    class Reordered:
        @classmethod
        def rebalance_experts(cls, weight: Any, num_groups: int, num_replicas: int) -> Any: ...

    for other, words in ((Renamed, "takes no method"), (Reordered, "takes weight, num_groups, num_replicas")):
        with monkeypatch.context() as patch:
            patch.setattr(policy, "DefaultEplbPolicy", other)
            with pytest.raises(InputError, match=f"not that of vLLM 0.33.0.*{words}"):
                register()

    def add_model(self: Any, model: Any, config: Any, label: str | None = None) -> None: ...

    with monkeypatch.context() as patch:
        patch.setattr(balancer, "add_model", add_model)
        with pytest.raises(InputError, match=r"add_model takes self, model, config, label"):
            register()
    register()
    state = balancer()
    del state.expert_rearrangement_step_interval
    with pytest.raises(InputError, match="EplbState has no expert_rearrangement_step_interval"):
        state.add_model(model(), "config")
    with pytest.raises(InputError, match="has no num_moe_layers"):
        balancer().add_model(SimpleNamespace(), "config")


def test_a_bad_file_is_refused(asked: Path, balancer: type[Balancer]) -> None:
    asked.write_text("{}")
    with pytest.raises(MapError, match="schema"):
        register()
