"""What vLLM's own capturer and encoder make of routing, the reader reads."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from placement.readers.convert import convert
from placement.traces.trace import open_trace

pytestmark = pytest.mark.engines
CAPTURER = "vllm.model_executor.layers.fused_moe.routed_experts_capturer"
ENCODER = "vllm.utils.serial_utils"


@pytest.mark.parametrize("experts", [6, 300])
def test_routed_experts(
    experts: int,
    import_engine: Callable[..., Callable[[str], ModuleType]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """As a .npy and as a response of the server: the ids of the MoE layers, and a dense layer left out."""
    import torch

    monkeypatch.setitem(sys.modules, "pybase64", base64)
    load = import_engine("vllm", CAPTURER, ENCODER)
    module = load(CAPTURER)
    module.current_platform = SimpleNamespace(device_type="cpu")
    module.get_forward_context = lambda: SimpleNamespace(dp_metadata=None, batch_descriptor=None)
    module.dbo_current_ubatch_token_offset = lambda: 0
    sizes = SimpleNamespace(
        get_total_num_hidden_layers=lambda: 3,
        get_num_experts=lambda: experts,
        get_num_experts_per_tok=lambda: 2,
        hf_text_config=SimpleNamespace(model_type="tiny"),
    )
    parallel = SimpleNamespace(data_parallel_rank=0, tensor_parallel_size=1)
    capturer: Any = module.RoutedExpertsCapturer(16, SimpleNamespace(model_config=sizes, parallel_config=parallel))
    ids = np.argsort(np.random.default_rng(experts).random((2, 9, experts)), axis=2)[:, :, :2]
    for layer in (1, 2):
        capturer.capture(layer, torch.tensor(ids[layer - 1]))
    array = capturer.snapshot_routing_data(9).numpy()
    np.save(tmp_path / "request.npy", array)
    choice = {"index": 0, "routed_experts": load(ENCODER).numpy2base64(array)}
    response = {"id": "q", "choices": [choice], "usage": {"prompt_tokens": 6, "total_tokens": 10}}
    (tmp_path / "response.json").write_text(json.dumps(response))
    for name, phases in (("request.npy", [0] * 9), ("response.json", [0] * 6 + [1] * 3)):
        done = convert(tmp_path / name, tmp_path / f"{name}-out")
        assert (done.reader, done.model.layer_ids, done.model.num_hidden_layers) == ("vllm", (1, 2), 3)
        block = next(open_trace(done.output).blocks())
        assert np.array_equal(np.stack([block.ids_TK(layer) for layer in range(2)]), ids)
        assert block.column_T("phase").tolist() == phases
