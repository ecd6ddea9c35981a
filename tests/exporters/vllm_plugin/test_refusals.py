"""The plugin says in words why it cannot do what it is asked: another vLLM, another balancer, a bad file."""

from __future__ import annotations

import logging
import re
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm_balancer import Balancer, model

from placement.errors import InputError, MapError
from placement.exporters.vllm_plugin import register


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
