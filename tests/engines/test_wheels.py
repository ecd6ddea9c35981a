"""The wheels are there, or it is said why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.engines


@pytest.mark.parametrize("engine", ["sglang", "vllm", "vllm_ascend", "lmdeploy"])
def test_the_wheel_of_an_engine_is_unpacked(engine: str, engine_source: Callable[[str], Path]) -> None:
    """The other tests of this folder read these files; a visible skip where an index does not have them."""
    assert (engine_source(engine) / engine / "__init__.py").is_file()


@pytest.mark.parametrize("engine", ["TensorRT-LLM", "omni-infer"])
def test_engines_that_have_no_wheel(engine: str) -> None:
    """Said here so that nobody takes a green run for a check by these parsers."""
    pytest.skip(f"{engine} has no wheel on the package index; its rules are tested in tests/exporters by themselves")
