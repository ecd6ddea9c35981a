"""Tiny random models of the families that the runtime attaches to."""

from __future__ import annotations

from typing import Any

import pytest
from moe import torch

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "olmoe": {"intermediate_size": 16, "num_experts": 8},
    "mixtral": {"intermediate_size": 16, "num_local_experts": 8},
    "qwen2_moe": {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 8},
    "qwen3_moe": {"moe_intermediate_size": 16, "num_experts": 8, "head_dim": 8, "decoder_sparse_step": 1},
    "deepseek_v2": {"moe_intermediate_size": 16, "n_routed_experts": 8, "first_k_dense_replace": 1, **MLA}
    | {"num_key_value_heads": 4, "n_group": 1, "topk_group": 1, "topk_method": "greedy", "n_shared_experts": 1},
    "deepseek_v3": {"moe_intermediate_size": 16, "n_routed_experts": 8, "first_k_dense_replace": 1, **MLA}
    | {"num_key_value_heads": 4, "n_group": 2, "topk_group": 1, "n_shared_experts": 1},
    "glm4_moe": {"moe_intermediate_size": 16, "n_routed_experts": 8, "first_k_dense_replace": 1, "head_dim": 8}
    | {"n_group": 1, "topk_group": 1, "n_shared_experts": 1},
    "gpt_oss": {"intermediate_size": 16, "num_local_experts": 8, "head_dim": 8, "sliding_window": 8},
}


def make_model(family: str, *, seed: int = 0) -> Any:
    """The same weights for the same seed, large enough for experts to matter; fp32, in evaluation."""
    config = transformers.AutoConfig.for_model(family, **SIZES | FAMILIES[family])
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return model


def layer_ids(model: Any) -> tuple[int, ...]:
    names = [name for name, _ in model.named_modules() if name.endswith(".experts")]
    return tuple(int(name.split(".")[2]) for name in names)
