"""The flags, variables and keys that our hints name are those of the engines."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from placement.exporters import get_exporter
from placement.testing.exporters import exported, small_placement

pytestmark = pytest.mark.engines

SOURCES = {
    "sglang": ("sglang", "sglang/srt/arg_groups/fields/*.py"),
    "vllm": ("vllm", "vllm/engine/arg_utils.py"),
    "vllm-plugin": ("vllm", "vllm/engine/arg_utils.py"),
    "vllm-ascend": ("vllm", "vllm/engine/arg_utils.py"),
    "lmdeploy": ("lmdeploy", "lmdeploy/cli/*.py"),
}
OURS = ("--to", "--replica-choice", "--num-hidden-layers")


@pytest.mark.parametrize("name", SOURCES)
def test_flags_exist(name: str, engine_source: Callable[[str], Path]) -> None:
    """Each is in the engine's source, in quotes or as the field that makes it."""
    engine, files = SOURCES[name]
    text = "\n".join(path.read_text() for path in sorted(engine_source(engine).glob(files)))
    hints = " ".join(exported(get_exporter(name), small_placement()).hints)
    flags = sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", hints)) - set(OURS))
    assert flags
    for flag in flags:
        field = flag[2:].replace("-", "_")
        assert re.search(rf"""["']{flag}["']|^ +{field}\b *[:=]""", text, re.MULTILINE), flag


@pytest.mark.parametrize(
    ("name", "engine", "file", "pattern"),
    [
        ("lmdeploy", "lmdeploy", "lmdeploy/pytorch/envs.py", r"\bLMDEPLOY_\w+(?==)"),
        ("vllm-ascend", "vllm_ascend", "vllm_ascend/ascend_config.py", r'(?<=")\w+(?=":)'),
        ("vllm-plugin", "vllm", "vllm/config/parallel.py", r'(?<=")\w+(?=":)'),
        ("vllm-plugin", "vllm", "vllm/envs.py", r"\bVLLM_\w+"),
    ],
)
def test_variables_and_keys_exist(
    name: str, engine: str, file: str, pattern: str, engine_source: Callable[[str], Path]
) -> None:
    """An environment variable that nobody reads would be silent."""
    text = (engine_source(engine) / file).read_text()
    found = set(re.findall(pattern, " ".join(exported(get_exporter(name), small_placement()).hints)))
    assert found
    assert not [word for word in found if not re.search(rf"\b{word}\b", text)]
