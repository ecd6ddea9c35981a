"""vLLM's own balancer starts from our map, by the plugin; its configuration takes the flags that we name."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal, Self

import numpy as np
import pytest
from map_in_force import LAYERS, SHAPES, changed

from placement.documents.placement import load_placement
from placement.errors import MapError
from placement.exporters import get_exporter
from placement.exporters.vllm_plugin.start import check_model, fixed_policy
from placement.testing.exporters import small_placement

pytestmark = pytest.mark.engines
GROUP = "vllm.general_plugins"
PROJECT = Path(__file__).parents[2] / "pyproject.toml"
POLICY = "vllm.distributed.eplb.policy.default"
PATH = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])


def test_four_ranks_start_from_our_map(engine_source: Callable[[str], Path], tmp_path: Path) -> None:
    """After the first step maps, replica tables and weights are ours; the profile run changes nothing."""
    pytest.importorskip("torch")
    placement = small_placement()
    (tmp_path / "p.json").write_bytes(get_exporter("vllm-plugin").export(placement).content)
    installed = tmp_path / "site" / "expert_placement-0.dist-info"  # as pip would have installed the project
    installed.mkdir(parents=True)
    points = tomllib.loads(PROJECT.read_text())["project"]["entry-points"][GROUP]
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: expert-placement\nVersion: 0\n")
    (installed / "entry_points.txt").write_text(
        "\n".join([f"[{GROUP}]", *(f"{name} = {value}" for name, value in points.items())])
    )
    script = Path(__file__).parent / "vllm_rank.py"
    environment = os.environ | {
        "EXPERT_PLACEMENT_FILE": str(tmp_path / "p.json"),
        "PYTHONPATH": os.pathsep.join([str(installed.parent), PATH]),
        "OMP_NUM_THREADS": "1",
    }
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                script,
                str(rank),
                "4",
                engine_source("vllm"),
                tmp_path / "meeting",
                tmp_path / f"{rank}.npz",
            ],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(4)
    ]
    told = [process.communicate(timeout=120)[1] for process in ranks]
    assert not any(process.returncode for process in ranks), "\n".join(told)
    trivial_LP = np.tile([0, 1, 2, 3, 4, 5, 0, 1], (2, 1))
    for rank in range(4):
        found = np.load(tmp_path / f"{rank}.npz")
        assert np.array_equal(found["before"], trivial_LP)
        assert np.array_equal(found["profiled"], trivial_LP)
        assert np.array_equal(found["after"], placement.phy2log_LP)
        assert np.array_equal(found["copies"], placement.copies_LE())
        for layer, row in enumerate(placement.phy2log_LP):
            for expert, slots in enumerate(found["logical_to_physical"][layer]):
                assert sorted(slots[slots >= 0]) == np.flatnonzero(row == expert).tolist()
        for index, width in ((0, 3), (1, 5)):
            mine_LS = placement.phy2log_LP.reshape(2, 4, 2)[:, rank] + np.array([[0], [100]])
            assert np.array_equal(found[f"weight{index}"], np.repeat(mine_LS[:, :, None], width, axis=2))


def test_other_models_are_left_to_vllm(import_engine: Callable[..., Callable[[str], ModuleType]]) -> None:
    """A drafting model has other layers: vLLM's own policy places it, as if the plugin were not there."""
    import torch

    default = import_engine("vllm", POLICY, "vllm.distributed.eplb.policy.abstract")(POLICY).DefaultEplbPolicy
    policy: Any = fixed_policy([small_placement()], default)
    ours = policy.rebalance_experts(torch.ones(2, 6), 8, 1, 2, 4)
    assert ours.dtype == torch.int64
    assert np.array_equal(ours.numpy(), small_placement().phy2log_LP)
    load = torch.tensor(np.random.default_rng(0).random((1, 6)))
    for arguments in ((load, 8, 1, 2, 4), (torch.ones(2, 6), 12, 1, 2, 6)):
        assert torch.equal(policy.rebalance_experts(*arguments), default.rebalance_experts(*arguments))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_change_of_the_map_in_force(
    shape: tuple[int, ...], import_engine: Any, write_trace: Any, run_cli: Any, tmp_path: Path
) -> None:
    """vLLM's policy is the published algorithm, so its maps have wasted slots; it takes the change of such a map."""
    import torch

    experts, redundant, nodes, gpus = shape
    default = import_engine("vllm", POLICY, "vllm.distributed.eplb.policy.abstract")(POLICY).DefaultEplbPolicy
    load_LE = np.random.default_rng(1).lognormal(0.0, 0.8, (LAYERS, experts))
    asked = (experts + redundant, 1, nodes, nodes * gpus)
    change = changed("vllm", shape, tmp_path, write_trace, run_cli)
    assert np.array_equal(default.rebalance_experts(torch.tensor(load_LE), *asked).numpy(), change.now.phy2log_LP)
    change.run("export", tmp_path / "new.json", "--to", "vllm-plugin", "-o", tmp_path / "plugin.json")
    model = SimpleNamespace(
        num_moe_layers=LAYERS,
        num_logical_experts=experts,
        num_physical_experts=experts + redundant,
        num_local_physical_experts=(experts + redundant) // (nodes * gpus),
    )
    placement, _ = load_placement(tmp_path / "plugin.json")
    check_model(placement, model, "plugin.json")
    policy: Any = fixed_policy(placement, default)
    ours = policy.rebalance_experts(torch.ones(LAYERS, experts), *asked)
    assert np.array_equal(ours.numpy(), change.new.phy2log_LP)


@pytest.mark.parametrize(
    "wrong", ["num_moe_layers", "num_logical_experts", "num_physical_experts", "num_local_physical_experts"]
)
def test_a_map_for_something_else_stops_vllm(wrong: str) -> None:
    """Rather than it running with another map than the one that was asked for."""
    model = {
        "num_moe_layers": 2,
        "num_logical_experts": 6,
        "num_physical_experts": 8,
        "num_local_physical_experts": 2,
    }
    check_model(small_placement(), SimpleNamespace(**model), "p.json")
    with pytest.raises(MapError, match=rf"p\.json is for {wrong}="):
        check_model(small_placement(), SimpleNamespace(**(model | {wrong: 99})), "p.json")


@pytest.fixture
def eplb_config(engine_source: Callable[[str], Path]) -> type:
    """The engine's `EPLBConfig`, taken out of its module, which imports half of vLLM."""
    pydantic = pytest.importorskip("pydantic")
    tree = ast.parse((engine_source("vllm") / "vllm" / "config" / "parallel.py").read_text())
    wanted = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "EPLBConfig"]
    wanted += [
        node
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith(("EPLBPolicy", "EPLBCommunicator"))
    ]
    wanted.sort(key=lambda node: node.lineno)
    names = {
        "Literal": Literal,
        "Self": Self,
        "Field": pydantic.Field,
        "model_validator": pydantic.model_validator,
        "config": pydantic.dataclasses.dataclass(config=pydantic.ConfigDict(extra="forbid")),
    }
    exec(compile(ast.Module(wanted, []), "parallel.py", "exec", dont_inherit=True), names)  # noqa: S102
    return names["EPLBConfig"]  # type: ignore[return-value]


def flags_of(name: str) -> dict[str, Any]:
    hints = " ".join(get_exporter(name).export(small_placement()).hints)
    found = re.search(r"--eplb-config '(.*?)'", hints)
    assert found is not None
    flags: dict[str, Any] = json.loads(found[1])
    return flags


def test_vllm_takes_the_flags_for_the_plugin(eplb_config: Any) -> None:
    """Checked by its strict model of the configuration."""
    made = eplb_config(**flags_of("vllm-plugin"))
    assert (made.num_redundant_experts, made.use_async) == (2, False)


def test_the_map_option_is_still_to_come(eplb_config: Any) -> None:
    """`initial_expert_map_path` is that of an open pull request: once this fails, the exporter is no experiment."""
    flags = flags_of("vllm")
    with pytest.raises(ValueError, match="initial_expert_map_path"):
        eplb_config(**flags)
    del flags["initial_expert_map_path"]
    assert eplb_config(**flags).num_redundant_experts == 2
