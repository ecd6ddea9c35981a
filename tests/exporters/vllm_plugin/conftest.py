"""vLLM's balancer, stood in for, and a map that it is asked to load."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from vllm_balancer import Balancer, Default

from placement.exporters import get_exporter
from placement.exporters.vllm_plugin import VARIABLE
from placement.testing.exporters import small_placement


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
