"""The experts of one rank's slots: two grouped matrix products with a gated activation between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from placement.errors import OptionError

GPT_OSS_LIMIT, GPT_OSS_ALPHA = 7.0, 1.702


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of [..., gate | up]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def gpt_oss(gate_up: Tensor) -> Tensor:
    """GPT-OSS's clamped variant: gate * sigmoid(1.702 * gate) * (up + 1)."""
    gate, up = gate_up.chunk(2, dim=-1)
    gate = gate.clamp(max=GPT_OSS_LIMIT)
    up = up.clamp(min=-GPT_OSS_LIMIT, max=GPT_OSS_LIMIT)
    return gate * torch.sigmoid(gate * GPT_OSS_ALPHA) * (up + 1)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"swiglu": swiglu, "gpt-oss": gpt_oss}


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedExperts:
    """Weights of the experts in a rank's slots, in slot order; `S` slots, hidden size `D`, intermediate size `I`.

    Attributes:
        gate_up: Weights, [S, D, 2 * I], gate columns before up columns (views of transposed weights will do).
        down: Weights, [S, I, D].
        activation: `swiglu` or `gpt-oss`.
        gate_up_bias: Biases, [S, 2 * I], or None.
        down_bias: Biases, [S, D], or None.
    """

    gate_up: Tensor
    down: Tensor
    activation: str = "swiglu"
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise OptionError(f"activation={self.activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}")
        (slots, hidden, double), down = self.gate_up.shape, self.down.shape
        if tuple(down) != (slots, double // 2, hidden) or double % 2:
            raise OptionError(
                f"gate_up {list(self.gate_up.shape)} and down {list(down)} do not fit; [S, D, 2 * I] and [S, I, D]"
            )

    @torch.no_grad()
    def __call__(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Outputs of rows [A, D] in slot order, `counts` int64 [S] of each slot."""
        inner = grouped_mm(rows, self.gate_up, counts)
        if self.gate_up_bias is not None:
            inner = inner + _by_row(self.gate_up_bias, counts, len(rows))
        out = grouped_mm(ACTIVATIONS[self.activation](inner), self.down, counts)
        if self.down_bias is not None:
            out = out + _by_row(self.down_bias, counts, len(rows))
        return out

    @property
    def hidden(self) -> int:
        """Hidden size."""
        return self.down.shape[2]

    @torch.no_grad()
    def padded(self, rows_SCD: Tensor) -> Tensor:
        """Outputs where every slot has equally many rows [S, C, D], some of them blank: static shapes."""
        inner = torch.bmm(rows_SCD, self.gate_up)
        if self.gate_up_bias is not None:
            inner = inner + self.gate_up_bias[:, None]
        out = torch.bmm(ACTIVATIONS[self.activation](inner), self.down)
        return out if self.down_bias is None else out + self.down_bias[:, None]


def split_interleaved(gate_up: Tensor) -> Tensor:
    """[..., g0 u0 g1 u1 ...] as GPT-OSS stores it, to [..., gate | up]."""
    return torch.cat([gate_up[..., ::2], gate_up[..., 1::2]], dim=-1)


def grouped_mm(rows: Tensor, weight_SXY: Tensor, counts: Tensor) -> Tensor:
    """Rows [A, X] of each slot times that slot's matrix, [A, Y]."""
    if not len(rows):
        return rows.new_empty((0, weight_SXY.shape[2]))
    if _has_grouped_mm(rows, weight_SXY):
        offsets = torch.cumsum(counts, 0, dtype=torch.int32)
        return torch.nn.functional.grouped_mm(rows, weight_SXY, offs=offsets)
    parts = rows.split(counts.tolist())
    return torch.cat([part @ weight for part, weight in zip(parts, weight_SXY, strict=True)])


def _has_grouped_mm(rows: Tensor, weight: Tensor) -> bool:
    """Rows must be multiples of 16 bytes; fp16 is very slow on CPUs; GPUs have it for bf16, from Hopper on."""
    if not hasattr(torch.nn.functional, "grouped_mm"):
        return False
    strides = (rows.stride(0), max(weight.stride()[1:]))
    if any(stride * rows.element_size() % 16 for stride in strides) or 1 not in weight.stride()[1:]:
        return False
    if not rows.is_cuda:
        return rows.dtype in (torch.float32, torch.bfloat16)
    return rows.dtype == torch.bfloat16 and torch.cuda.get_device_capability(rows.device) >= (9, 0)


def _by_row(bias_SX: Tensor, counts: Tensor, num_rows: int) -> Tensor:
    return bias_SX.repeat_interleave(counts, dim=0, output_size=num_rows)
