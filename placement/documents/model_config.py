"""The sizes of a model's experts and of its tokens, from the `config.json` of a Hugging Face model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from placement.errors import InputError

EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")
TOP_K = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_k")
WIDTH = ("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size")
BITS_OF_TYPE = {"bfloat16": 16.0, "float16": 16.0, "float32": 32.0}
BITS_OF_METHOD = {"fp8": 8.0, "mxfp4": 4.25, "nvfp4": 4.5}  # scales of blocks included, where they weigh
MATRICES = 3  # gate, up and down
SCALE_BLOCK, SCALE_BYTES, ALIGNED_BYTES = 128, 4, 16  # DeepEP, `csrc/kernels/internode.cu`


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """What a cluster description needs of a model.

    Attributes:
        num_experts: Routed experts of a layer.
        top_k: Experts that a token visits.
        hidden: Width of a token's hidden state.
        width: Width inside an expert.
        weight_bits: Bits of a weight of an expert, the scales of its blocks included.
    """

    num_experts: int
    top_k: int
    hidden: int
    width: int
    weight_bits: float

    @property
    def expert_bytes(self) -> int:
        """Weights of one expert."""
        return int(MATRICES * self.hidden * self.width * self.weight_bits / 8)

    @property
    def dispatch_bytes(self) -> int:
        """One copy of a token on its way to its experts: fp8 with scales, its source, its ids and their weights."""
        return self._aligned(self.hidden + -(-self.hidden // SCALE_BLOCK) * SCALE_BYTES + 8 + 8 * self.top_k)

    @property
    def combine_bytes(self) -> int:
        """One copy of a token on its way back: bf16, its source and its weights."""
        return self._aligned(2 * self.hidden + 8 + 4 * self.top_k)

    @staticmethod
    def _aligned(size: int) -> int:
        return -(-size // ALIGNED_BYTES) * ALIGNED_BYTES


def read_model_config(path: str | Path) -> ModelSizes:
    """Read a `config.json`.

    Args:
        path: The file, or the folder of the model that holds the file.

    Raises:
        InputError: The file cannot be read, is no configuration, or lacks a size.
    """
    path = Path(path)
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text())
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}; give the config.json of a model") from None
    except (ValueError, RecursionError):
        raise InputError(f"{file} is not JSON; give the config.json of a model") from None
    if not isinstance(config, dict):
        raise InputError(f"{file} holds no object; give the config.json of a model")
    text = config.get("text_config")
    inner = config | text if isinstance(text, dict) else config
    return ModelSizes(
        num_experts=_whole(file, inner, EXPERTS),
        top_k=_whole(file, inner, TOP_K),
        hidden=_whole(file, inner, ("hidden_size",)),
        width=_whole(file, inner, WIDTH),
        weight_bits=_weight_bits(file, inner),
    )


def _whole(file: Path, config: dict[str, Any], names: tuple[str, ...]) -> int:
    """The first of the keys that the configuration has."""
    for name in names:
        value = config.get(name)
        if type(value) is int and 0 < value < 2**31:
            return value
        if value is not None:
            raise InputError(f"{file}: {name}={str(value)[:40]} must be a whole number above 0")
    raise InputError(f"{file} has no {' or '.join(names)}; give the config.json of a Mixture-of-Experts model")


def _weight_bits(file: Path, config: dict[str, Any]) -> float:
    quantized = config.get("quantization_config")
    if not isinstance(quantized, dict):
        kind = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
        if kind not in BITS_OF_TYPE:
            raise InputError(f"{file}: dtype {kind[:40]!r} is unknown; {', '.join(BITS_OF_TYPE)} are known")
        return BITS_OF_TYPE[kind]
    method = str(quantized.get("quant_algo") or quantized.get("quant_method") or "").lower()
    if method in BITS_OF_METHOD:
        return BITS_OF_METHOD[method]
    bits = quantized.get("bits")
    if type(bits) is int and 1 <= bits <= 16:
        return float(bits)
    raise InputError(
        f"{file}: quantization {method[:40]!r} without a number of bits is unknown; {', '.join(BITS_OF_METHOD)} are "
        "known; write expert_bytes and weight_bits into cluster.yaml yourself"
    )
