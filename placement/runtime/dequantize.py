"""Weights in float8 with block scales, and in MXFP4, as numbers to compute with, made when a tensor is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from placement.errors import InputError
from placement.runtime.lazy_tensor import LazyTensor

FP8, MXFP4 = "fp8", "mxfp4"
SCALE, BLOCKS, SCALES = "_scale_inv", "_blocks", "_scales"  # how names of tensors that belong together end
# E2M1: a sign, two bits of exponent, one of mantissa
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_BIAS = 127  # of the exponents that scales of MXFP4 are
_NOT_A_NUMBER = 255  # among these exponents
_WEIGHTS, _CODES = ("F8_E4M3", "F8_E5M2"), ("F8_", "I8", "U8")  # types of fp8's weights; of weights that need a scale
_REAL = ("F64", "F32", "F16", "BF16", "F8_E8M0")


def dequantize(
    tensors: Mapping[str, LazyTensor],
    types: Mapping[str, str],
    told: Mapping[str, Any] | None,
    dtype: torch.dtype,
    folder: Path,
) -> dict[str, LazyTensor]:
    """The tensors under the names that they have in a checkpoint that is not quantized, read as before only when asked.

    Args:
        tensors: As the checkpoint has them.
        types: What safetensors calls their types.
        told: `quantization_config` of the model; None: the checkpoint has none, and so must have no quantized tensor.
        dtype: Type of the weights that come out.
        folder: For messages.

    Raises:
        InputError: They are quantized in another way or without a word of how, or a scale is missing.
    """
    if told is None:
        _refuse_codes(tensors, types, f"{folder / 'config.json'} has no quantization_config to read it by", folder)
        return dict(tensors)
    method, block = told.get("quant_method"), told.get("weight_block_size")
    if method not in (FP8, MXFP4):
        raise InputError(f"{folder} is quantized by {method!r}; {FP8} with scales and {MXFP4} can be read")
    if block is not None and not (isinstance(block, list | tuple) and len(block) == 2 and all(map(_is_size, block))):
        raise InputError(f"{folder} has weight_block_size {block!r}; two whole numbers above 0 are needed, or null")
    found = dict(tensors)
    for name in tensors:
        if method == FP8 and name.endswith(SCALE):
            base, scale = name.removesuffix(SCALE), found.pop(name)
            weight = _partner(found, base, name, folder)
            for one, allowed in ((name, _REAL), (base, _WEIGHTS)):
                if types[one] not in allowed:
                    raise InputError(f"{folder} has {one} in {types[one]}; {', '.join(allowed)} can be read there")
            found[base] = LazyTensor(partial(_from_fp8, weight, scale, block, dtype, base))
        elif method == MXFP4 and name.endswith(BLOCKS):
            base = name.removesuffix(BLOCKS)
            scales = _partner(found, base + SCALES, name, folder)
            found[base] = LazyTensor(partial(_from_mxfp4, found.pop(name), scales, dtype, base))
            del found[base + SCALES]
    kept = {name: one for name, one in found.items() if one is tensors.get(name)}
    if bare := [name for name in kept if method == FP8 and types[name].startswith("F8_")]:
        raise InputError(f"{folder} has {bare[0]} in {types[bare[0]]} without {bare[0]}{SCALE}; fetch all of its files")
    _refuse_codes(kept, types, f"{method} does not tell what it stands for", folder)
    return found


def _refuse_codes(names: Iterable[str], types: Mapping[str, str], why: str, folder: Path) -> None:
    """Raises InputError for a tensor whose numbers are not those that they stand for, or that scales others."""
    for name in names:
        if types[name].startswith(_CODES) or name.endswith((SCALE, BLOCKS, SCALES)):
            raise InputError(f"{folder} has {name} in {types[name]}, and {why}; fetch all of its files")


def _is_size(number: Any) -> bool:
    return type(number) is int and number > 0


def _partner(found: Mapping[str, LazyTensor], wanted: str, name: str, folder: Path) -> LazyTensor:
    if wanted not in found:
        raise InputError(f"{folder} has {name} without {wanted}; fetch all of its files")
    return found[wanted]


def _from_fp8(weight: LazyTensor, scale: LazyTensor, block: Any, dtype: torch.dtype, name: str) -> Tensor:
    """[..., N, M] in float8 with one scale for each block of rows and columns, or one for all."""
    whole, scales = weight[...], scale[...].float()
    if not bool(((scales > 0) & scales.isfinite()).all()):
        raise InputError(f"{name}{SCALE} has scales that are not finite numbers above 0; fetch it again")
    if scales.numel() == 1:
        return (whole.float() * scales).to(dtype)
    rows, columns = whole.shape[-2:] if whole.ndim > 1 else (0, 0)
    sizes = tuple(block) if block is not None else (0, 0)
    fits = min(sizes) > 0 and tuple(scales.shape) == (*whole.shape[:-2], -(-rows // sizes[0]), -(-columns // sizes[1]))
    if not fits:
        raise InputError(f"{name} {list(whole.shape)} has scales {list(scales.shape)} where blocks are {block}")
    out = torch.empty(whole.shape, dtype=dtype)
    for one, its_scales, into in zip(
        whole.reshape(-1, rows, columns),
        scales.reshape(-1, *scales.shape[-2:]),
        out.view(-1, rows, columns),
        strict=True,
    ):
        wide = its_scales.repeat_interleave(sizes[1], dim=1)[:, :columns]
        into.copy_(one.float() * wide.repeat_interleave(sizes[0], dim=0)[:rows])
    return out


def _from_mxfp4(blocks: LazyTensor, scales: LazyTensor, dtype: torch.dtype, name: str) -> Tensor:
    """[S, N, M / 32, 16] bytes of two numbers each, the low one first, and [S, N, M / 32] exponents: [S, M, N]."""
    packed, exponents = blocks[...], scales[...]
    in_bytes = packed.dtype == torch.uint8 and exponents.dtype == torch.uint8
    if not in_bytes or packed.ndim != 4 or packed.shape[3] != 16 or packed.shape[:3] != exponents.shape:
        raise InputError(
            f"{name} has blocks {list(packed.shape)} in {packed.dtype} and scales {list(exponents.shape)} in "
            f"{exponents.dtype}; [S, N, M / 32, 16] and [S, N, M / 32] in {torch.uint8} are needed"
        )
    if bool((exponents == _NOT_A_NUMBER).any()):
        raise InputError(f"{name}{SCALES} has the exponent {_NOT_A_NUMBER}, which is no number; fetch it again")
    slots, rows, groups, _ = packed.shape
    values = torch.tensor(_E2M1)
    out = torch.empty((slots, groups * 32, rows), dtype=dtype)
    for one, powers, into in zip(packed, exponents, out, strict=True):
        numbers = torch.stack([values[(one & 15).long()], values[(one >> 4).long()]], dim=-1).flatten(2)  # [N, G, 32]
        numbers = torch.ldexp(numbers, powers.int()[:, :, None] - _BIAS)
        into.copy_(numbers.flatten(1).T)
    return out
