"""The Python files of serving engines' wheels, fetched by pip into a cache outside of the repository.

Nothing of an engine is installed or copied here: tests import single modules of it from the unpacked wheel, and all
other modules of its package are stand-ins. A wheel that cannot be had makes tests skip and say so.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

# pytest imports tests by their path and leaves sys.path alone; this lets them import partial_package.py
sys.path += [str(Path(__file__).parent)]

from partial_package import PartialPackage

# package: wheel, of the group `engines`; a wheel's Python files are the same on every platform
PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
WHEELS = {
    line.partition("==")[0].replace("-", "_"): line.partition(";")[0]
    for line in PROJECT["dependency-groups"]["engines"]
}
PACKAGES = {"ai_dynamo": "dynamo"}  # of the others the wheel and the package have one name
PLATFORM = ("--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--abi", "abi3", "--abi", "none")
SYSTEMS = ("manylinux_2_34_x86_64", "manylinux_2_28_x86_64", "manylinux2014_x86_64", "any")

SGLANG_MAPS, SGLANG_DISPATCH = "sglang.srt.eplb.expert_location", "sglang.srt.eplb.expert_location_dispatch"

ImportEngine = Callable[..., Callable[[str], ModuleType]]


def cache_folder() -> Path:
    """`$EXPERT_PLACEMENT_CACHE`, else `~/.cache/expert-placement`; wheels and what was unpacked are in `engines/`."""
    root = os.environ.get("EXPERT_PLACEMENT_CACHE") or Path.home() / ".cache" / "expert-placement"
    return Path(root) / "engines"


@cache
def fetched(engine: str) -> tuple[Path | None, str]:
    """(folder with the Python files of that engine's wheel, or None; why there is none)."""
    folder = cache_folder() / f"{engine}-{WHEELS[engine].split('==')[1]}"
    if folder.is_dir():
        return folder, ""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", *PLATFORM, *(word for one in SYSTEMS for word in ("--platform", one))]
        command += ["--find-links", str(folder.parent), "--dest", scratch, WHEELS[engine]]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return None, f"{WHEELS[engine]} could not be fetched: {error}"
        wheels = list(Path(scratch).glob("*.whl"))
        if run.returncode or not wheels:
            return None, f"{WHEELS[engine]} could not be fetched: {(run.stderr.strip() or 'no wheel').splitlines()[-1]}"
        unpacked = Path(scratch) / "unpacked"
        with zipfile.ZipFile(wheels[0]) as wheel:
            wheel.extractall(unpacked, [member for member in wheel.namelist() if member.endswith((".py", ".txt"))])
        if not folder.is_dir():
            shutil.move(unpacked, folder)
    return folder, ""


@pytest.fixture(scope="session")
def engine_source() -> Callable[[str], Path]:
    """`engine_source("sglang")`: folder with the package `sglang/` of the real wheel. Skips where it cannot be had."""

    def source(engine: str) -> Path:
        folder, why = fetched(engine)
        if folder is None:
            pytest.skip(why)
        return folder

    return source


@pytest.fixture
def import_engine(engine_source: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[ImportEngine]:
    """`import_engine("vllm", "vllm.distributed.eplb.policy.default")`: a function that imports modules of the engine.

    The named modules are the wheel's own, all others of the package are stand-ins, whose attributes a test may set.
    """
    packages: list[str] = []

    def imports(engine: str, *real: str) -> Callable[[str], ModuleType]:
        pytest.importorskip("torch")
        package = PACKAGES.get(engine, engine)
        finder = PartialPackage(engine_source(engine), package, real)
        monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
        packages.append(package)
        return importlib.import_module

    yield imports
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]


@pytest.fixture
def sglang_metadata(import_engine: ImportEngine) -> Callable[..., Any]:
    """The engine's metadata of `--init-expert-location`, on rank `rank` of two nodes of two GPUs."""
    load = import_engine("sglang", SGLANG_MAPS, SGLANG_DISPATCH)
    context = load("sglang.srt.runtime_context")
    loader = load("sglang.srt.model_loader")
    location = load(SGLANG_MAPS)

    def run(
        path: Path | str,
        *,
        layers: int = 4,
        rank: int = 0,
        algorithm: str = "static",
        shape: tuple[int, ...] = (6, 2, 2, 2),  # experts, redundant ones, nodes, GPUs of a node
    ) -> Any:
        experts, redundant, nodes, gpus = shape
        moe = SimpleNamespace(
            init_expert_location=str(path),
            ep_num_redundant_experts=redundant,
            ep_dispatch_algorithm=algorithm,
            moe_a2a_backend="deepep",
            ep_join_mode="",
        )
        model = location.ModelConfigForExpertLocation(num_layers=layers, num_logical_experts=experts, num_groups=None)
        context.get_exec = location.get_exec = lambda: SimpleNamespace(moe=moe)
        context.get_device = location.get_device = lambda: SimpleNamespace(device="cpu")
        ranks = nodes * gpus
        location.get_parallel = lambda: SimpleNamespace(
            ep_size=ranks, nnodes=nodes, tp_size=ranks, elastic_ep_initial_size=None
        )
        architecture = SimpleNamespace(get_model_config_for_expert_location=lambda _: model)
        loader.get_model_architecture = lambda _: (architecture, None)
        load("sglang.srt.elastic_ep.elastic_ep").elastic_expanded_world_enabled = lambda: False
        return location.compute_initial_expert_location_metadata(SimpleNamespace(hf_config=None), rank)

    return run
