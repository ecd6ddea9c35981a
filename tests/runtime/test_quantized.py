"""Checkpoints in float8 with block scales and in MXFP4 are read as the numbers that they stand for."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import FAMILIES, SIZES, layer_ids, make_model, transformers
from moe import torch
from safetensors.torch import load_file, save_file
from served_models import error, make_map, prompt, serve

from placement.errors import InputError
from placement.runtime import Lockstep, Mesh, load_sharded

BLOCK = (16, 8)


def e2m1(code: int) -> float:
    """Four bits by the definition: sign, two bits of exponent with bias 1, one of mantissa."""
    sign, power, half = 1 - 2 * (code >> 3), code >> 1 & 3, code & 1
    return sign * (half * 0.5 if power == 0 else (1 + half / 2) * 2.0 ** (power - 1))


def write(folder: Path, model: Any, tensors: dict[str, Any], told: dict[str, Any] | None) -> Path:
    """The checkpoint of `model` with other tensors, and what its configuration says of them."""
    model.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": told}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def in_fp8(tensors: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(with all projections in float8 and their scales, the numbers that they stand for, block by block)."""
    quantized, plain = {}, {}
    for name, weight in tensors.items():
        quantized[name], plain[name] = weight, weight
        if not name.endswith("_proj.weight"):
            continue
        rows, columns = (-(-size // block) for size, block in zip(weight.shape, BLOCK, strict=True))
        scales, codes, numbers = (
            torch.empty(rows, columns),
            torch.empty_like(weight).to(torch.float8_e4m3fn),
            weight.clone(),
        )
        for row in range(rows):
            for column in range(columns):
                part = slice(row * BLOCK[0], (row + 1) * BLOCK[0]), slice(column * BLOCK[1], (column + 1) * BLOCK[1])
                scales[row, column] = weight[part].abs().max() / 400
                codes[part] = (weight[part] / scales[row, column]).to(torch.float8_e4m3fn)
                numbers[part] = codes[part].float() * scales[row, column]
        quantized |= {name: codes, f"{name}_scale_inv": scales}
        plain[name] = numbers
    return quantized, plain


def logits_of(folder: Path, ids: tuple[int, ...]) -> list[list[Any]]:
    """Of four ranks with redundant experts, in fp32."""

    def program(mesh: Mesh) -> list[Any]:
        model, _ = load_sharded(folder, make_map(ids), mesh, dtype=torch.float32)
        assert not hasattr(model.config, "quantization_config")
        return serve(model, prompt(mesh.rank), 1)

    return Lockstep(2, 2).run(program)


def refuse(folder: Path, model: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_sharded(folder, make_map(layer_ids(model), num_nodes=1, gpus=1, slots=8), Lockstep(1, 1).mesh(0))


def test_float8_with_block_scales(tmp_path: Path) -> None:
    """DeepSeek-V3 as its checkpoint is: experts, shared experts and attention; the last blocks may be cut off."""
    model = make_model("deepseek_v3")
    model.save_pretrained(tmp_path / "plain")
    quantized, plain = in_fp8(load_file(tmp_path / "plain" / "model.safetensors"))
    assert sum(name.endswith("weight_scale_inv") for name in quantized) > 24
    told = {"quant_method": "fp8", "weight_block_size": list(BLOCK), "activation_scheme": "dynamic"}
    folder = write(tmp_path / "fp8", model, quantized, told)
    save_file(plain, tmp_path / "plain" / "model.safetensors", metadata={"format": "pt"})
    wanted = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    for rank, got in enumerate(logits_of(folder, layer_ids(model))):
        assert error(got, serve(wanted, prompt(rank), 1)) < 1e-5

    def refused(words: str, drop: str, others: dict[str, Any] | None = None, **changed: Any) -> None:
        fewer = {name: one for name, one in (quantized | (others or {})).items() if name != drop}
        refuse(write(tmp_path / f"odd {len(list(tmp_path.iterdir()))}", model, fewer, told | changed), model, words)

    name = "model.layers.0.self_attn.o_proj.weight"
    refused(f"{name} in F8_E4M3 without {name}_scale_inv", f"{name}_scale_inv")
    refused(f"has {name}_scale_inv without {name}", name)
    refused("is quantized by 'awq'; fp8 with scales and mxfp4 can be read", "", quant_method="awq")
    refused(r"where blocks are \[128, 128\]", "", weight_block_size=[128, 128])
    refused("has weight_block_size ", "", weight_block_size=["16", "8"])
    scale = quantized[f"{name}_scale_inv"]
    refused(f"{name}_scale_inv in I32", "", {f"{name}_scale_inv": scale.int()})
    refused(f"{name} in F32", "", {name: plain[name]})
    for number in (float("nan"), float("inf"), 0.0, -1.0):
        odd = scale.clone()
        odd[-1, -1] = number
        refused(f"{name}_scale_inv has scales that are not finite", "", {f"{name}_scale_inv": odd})


def test_mxfp4(tmp_path: Path) -> None:
    """GPT-OSS as its checkpoint is: stacked blocks and exponents, biases as they are."""
    config = transformers.AutoConfig.for_model("gpt_oss", **SIZES | FAMILIES["gpt_oss"] | {"intermediate_size": 32})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path / "plain")
    tensors = load_file(tmp_path / "plain" / "model.safetensors")
    rng, wanted = np.random.default_rng(0), copy.deepcopy(model)
    table = np.array([e2m1(code) for code in range(16)], dtype=np.float32)
    for layer, block in enumerate(wanted.model.layers):
        for key in ("gate_up_proj", "down_proj"):
            name, weight = f"model.layers.{layer}.mlp.experts.{key}", getattr(block.mlp.experts, key)
            experts, columns, rows = weight.shape
            packed = rng.integers(0, 256, (experts, rows, columns // 32, 16)).astype(np.uint8)
            exponents = rng.integers(122, 126, (experts, rows, columns // 32)).astype(np.uint8)
            numbers = np.empty((experts, rows, columns // 32, 32), dtype=np.float32)
            numbers[..., 0::2], numbers[..., 1::2] = table[packed & 15], table[packed >> 4]
            numbers *= 2.0 ** (exponents.astype(np.float32) - 127)[..., None]
            del tensors[name]
            tensors |= {f"{name}_blocks": torch.from_numpy(packed), f"{name}_scales": torch.from_numpy(exponents)}
            whole = torch.from_numpy(numbers.reshape(experts, rows, columns)).transpose(1, 2)
            with torch.no_grad():
                weight.copy_(whole)
    folder = write(tmp_path / "mxfp4", model, tensors, {"quant_method": "mxfp4"})
    for rank, got in enumerate(logits_of(folder, layer_ids(model))):
        assert error(got, serve(wanted, prompt(rank), 1)) < 1e-5
    scales = [name for name in tensors if name.endswith("_scales")]
    odd = {name: one[:, :-1].contiguous() if name == scales[0] else one for name, one in tensors.items()}
    folder = write(tmp_path / "odd", model, odd, {"quant_method": "mxfp4"})
    refuse(folder, model, "are needed")
    bad = tensors[scales[0]].clone()
    bad[-1, -1, -1] = 255
    for name, one, words in (
        ("nan", bad, "has the exponent 255"),
        ("real", tensors[scales[0]].float(), "torch.float32; .* in torch.uint8 are needed"),
    ):
        refuse(write(tmp_path / name, model, tensors | {scales[0]: one}, {"quant_method": "mxfp4"}), model, words)
    refuse(write(tmp_path / "untold", model, tensors, None), model, "_blocks in U8, .* no quantization_config")


def test_codes_are_no_weights_unless_the_configuration_says_how(tmp_path: Path) -> None:
    """Without quantization_config no tensor of codes, and none that scales others, is taken for weights."""
    model = make_model("deepseek_v3")
    model.save_pretrained(tmp_path / "plain")
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    quantized, _ = in_fp8(plain)
    scales = {name: one for name, one in quantized.items() if name.endswith("_scale_inv")}
    bare = {name: one for name, one in quantized.items() if name not in scales}
    experts = [name for name in plain if ".experts." in name]
    assert scales and experts
    refuse(write(tmp_path / "all", model, quantized, None), model, "has no quantization_config")
    refuse(write(tmp_path / "bare", model, bare, None), model, "in F8_E4M3, .* has no quantization_config")
    refuse(
        write(tmp_path / "scales", model, plain | scales, None), model, "_scale_inv in F32, .* no quantization_config"
    )
    for kind, told in ((torch.int8, "I8"), (torch.uint8, "U8"), (torch.float8_e5m2, "F8_E5M2")):
        odd = plain | {name: plain[name].to(kind) for name in experts}
        refuse(write(tmp_path / told, model, odd, None), model, rf"\.experts\..* in {told}, .* no quantization_config")
    odd = plain | {name: plain[name].to(torch.int8) for name in experts}
    refuse(write(tmp_path / "other", model, odd, {"quant_method": "fp8"}), model, "in I8, and fp8 does not tell")
