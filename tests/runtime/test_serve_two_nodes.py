"""The example that serves a model on two nodes runs under torchrun: the model's text, a swap, a rank that is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from models import transformers
from moe import torch
from processes import compile_kernels

EXAMPLE = Path(__file__).parents[2] / "examples" / "serve_two_nodes.py"


def load() -> Any:
    spec = spec_from_file_location("serve_two_nodes", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `prepare` makes, and kernels in numba's cache, where the processes of torchrun find them."""
    compile_kernels()
    folder = tmp_path_factory.mktemp("serve") / "served"
    load().prepare(folder, None)
    return folder


def torchrun(folder: Path, *more: str) -> tuple[list[dict[str, Any]], str]:
    """What ranks told, and what was printed; those that told before are forgotten."""
    for path in folder.glob("text-*.json"):
        path.unlink()
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    command = [sys.executable, *launch, str(EXAMPLE), "serve", str(folder), *more]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    return [json.loads(path.read_text()) for path in sorted(folder.glob("text-*.json"))], done.stderr


def test_text_is_the_models_own(prepared: Path) -> None:
    """Every prompt is answered as one process answers it, across a swap between two tokens; rank 3 has no prompt."""
    example = load()
    told, printed = torchrun(prepared)
    assert [one["rank"] for one in told] == [0, 1, 2, 3], printed
    texts = {int(number): text for one in told for number, text in one["texts"].items()}
    assert not told[3]["texts"]
    assert all(one["newer"] for one in told)
    assert len({one["steps"] for one in told}) == 1
    model = transformers.AutoModelForCausalLM.from_pretrained(prepared / "model").eval()
    for number, prompt in enumerate(example.PROMPTS):
        ids = torch.tensor([example.Bytes().encode(prompt)])
        how = {"max_new_tokens": example.NEW_TOKENS, "do_sample": False}
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **how)
        assert texts[number] == example.Bytes().decode(out[0, ids.shape[1] :].tolist())


def test_a_killed_rank_is_named_by_all(prepared: Path) -> None:
    """In the midst of the swap; what was generated before is kept."""
    told, printed = torchrun(prepared, "--kill", "2", "--timeout-s", "15")
    assert [one["rank"] for one in told] == [0, 1, 3], printed
    for one in told:
        assert one["missing"] == [2], one["message"]
        assert "\n" not in one["message"]
    assert told[0]["texts"]
