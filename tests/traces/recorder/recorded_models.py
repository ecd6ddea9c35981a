"""Tiny models of several families, recorded, and the rows that a plain replay of their routers gives."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from placement.traces.trace import Trace

torch = pytest.importorskip("torch", reason="torch is not installed")

transformers = pytest.importorskip("transformers", minversion="5", reason="transformers 5 is not installed")

SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 16,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

DEEPSEEK = {
    "n_routed_experts": 8,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_shared_experts": 1,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "olmoe": {"num_experts": 8},
    "mixtral": {"num_local_experts": 8},
    "qwen2_moe": {"num_experts": 8, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {"num_experts": 8, "head_dim": 16},
    "deepseek_v2": DEEPSEEK | {"topk_method": "group_limited_greedy"},
    "deepseek_v3": DEEPSEEK,
    "gpt_oss": {"num_local_experts": 8, "head_dim": 16, "sliding_window": 4},
}


def tiny(family: str = "olmoe", **changes: Any) -> Any:
    """A model with random weights; `eos_token_id` is none, so that `generate` runs as long as it is told."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **(SMALL | FAMILIES[family] | changes))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for name, weight in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(weight, std=0.3)
    model.generation_config.eos_token_id = None
    return model


def cache_name(model: Any) -> str:
    """What this version of transformers calls the cache, given and returned."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def cache_of(model: Any, output: Any) -> dict[str, Any]:
    """The argument that makes a forward go on from `output`."""
    return {cache_name(model): output[cache_name(model)]}


def prompts() -> tuple[Any, Any]:
    """Three prompts of 5, 8 and 7 tokens, padded on the left."""
    ids = torch.randint(3, 60, (3, 8), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :3] = mask[2, :1] = 0
    return ids * mask, mask


def rows(trace: Trace) -> dict[tuple[str, int], tuple[int, list[list[int]], list[list[float]]]]:
    """Phase, ids and weights of every token in all layers, by request and position; each may be there once."""
    found: dict[tuple[str, int], tuple[int, list[list[int]], list[list[float]]]] = {}
    layers = range(trace.model.num_layers)
    for block in trace.blocks():
        ids = np.stack([block.ids_TK(layer) for layer in layers], axis=1)
        weights = np.stack([block.weights_TK(layer) for layer in layers], axis=1)
        for at, (request, position, phase) in enumerate(
            zip(block.request_T, block.column_T("position"), block.column_T("phase"), strict=True)
        ):
            key = (trace.requests[request].id, int(position))
            assert key not in found
            found[key] = (int(phase), ids[at].tolist(), weights[at].tolist())
    return found
