"""A token as a row of bytes: its slots, its weights and its hidden state, so that a hop has one payload.

The row is the same for every destination; who receives it picks out its own slots. A row is a multiple of 16 bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from placement.errors import OptionError
from placement.runtime.kernels import cpu
from placement.runtime.reduce import gather_rows

FP8: Any = getattr(torch, "float8_e4m3fn", None)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FP8_BLOCK = 128
ALIGN = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """How tokens travel.

    Attributes:
        hidden: Values of a hidden state.
        dtype: Their type: float32, bfloat16 or float16.
        width: Most assignments of a token.
        fp8: Hidden states go as float8 (e4m3) with one fp32 scale for every 128 values; they come back as `dtype`.
    """

    hidden: int
    dtype: torch.dtype
    width: int
    fp8: bool = False

    def __post_init__(self) -> None:
        if self.fp8 and FP8 is None:
            raise OptionError("fp8=True needs a torch with float8_e4m3fn; use torch 2.1 or later, or fp8=False")
        if self.dtype not in DTYPES:
            raise OptionError(f"dtype={self.dtype} cannot be dispatched; use float32, bfloat16 or float16")

    @property
    def blocks(self) -> int:
        """Blocks of a hidden state that have a scale each with `fp8`."""
        return -(-self.hidden // FP8_BLOCK)

    @property
    def kind(self) -> int:
        """Number that differs between rows of different make."""
        return ((self.hidden << 8 | self.width) << 4 | DTYPES.index(self.dtype)) << 1 | self.fp8

    @property
    def head_bytes(self) -> int:
        """Slots (int32), weights (fp32) and the scales of fp8."""
        return 4 * (2 * self.width + (self.blocks if self.fp8 else 0))

    @property
    def row_bytes(self) -> int:
        """Of one copy of a token on its way to its experts: `dispatch_bytes` of the cost model."""
        body = self.hidden * (1 if self.fp8 else self.dtype.itemsize)
        return -(-(self.head_bytes + body) // ALIGN) * ALIGN

    @property
    def return_bytes(self) -> int:
        """Of one partial sum on its way back: `combine_bytes` of the cost model."""
        return self.hidden * self.dtype.itemsize

    def encode(self, x_TD: Tensor, slot_TK: Tensor, weight_TK: Tensor, rows: Tensor) -> Tensor:
        """Fills `rows`, uint8 [T, row_bytes]."""
        width = self.width
        self._ints(rows)[:, :width] = slot_TK
        self._floats(rows)[:, width : 2 * width] = weight_TK
        if not self.fp8:
            self._body(rows, self.dtype)[:] = x_TD
            return rows
        padded = torch.nn.functional.pad(x_TD.float(), (0, self.blocks * FP8_BLOCK - self.hidden))
        blocks = padded.view(len(x_TD), self.blocks, FP8_BLOCK)
        scale = (blocks.abs().amax(dim=2) / torch.finfo(FP8).max).clamp(min=1e-12)
        self._floats(rows)[:, 2 * width :] = scale
        body = (blocks / scale[:, :, None]).flatten(1)[:, : self.hidden].to(FP8)
        rows[:, self.head_bytes : self.head_bytes + self.hidden] = body.view(torch.uint8)
        return rows

    def writer(self, x_TD: Tensor, slot_TK: Tensor, weight_TK: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Function of `row_S` and `out`, uint8 [S, row_bytes], that fills `out` with the rows of tokens `row_S`; on a
        CPU in one pass."""
        if self.fp8 or x_TD.is_cuda:
            rows = torch.empty((len(x_TD), self.row_bytes), dtype=torch.uint8, device=x_TD.device)
            return partial(gather_rows, self.encode(x_TD, slot_TK, weight_TK, rows))
        head = np.empty((len(x_TD), 2 * self.width), dtype=np.int32)
        head[:, : self.width] = slot_TK.numpy()
        head[:, self.width :].view(np.float32)[:] = weight_TK.float().numpy()
        body = x_TD.detach().contiguous().view(torch.uint8).numpy()
        word = np.uint64 if body.shape[1] % 8 == 0 else np.uint16

        def write(row_S: Tensor, out: Tensor) -> Tensor:
            cpu.pack_rows(head.view(word), body.view(word), row_S.numpy(), out.numpy().view(word))
            return out

        return write

    def slots(self, rows: Tensor) -> Tensor:
        """Slots of rows, int32 [R, width]; -1 where there is none."""
        return self._ints(rows)[:, : self.width]

    def weights(self, rows: Tensor) -> Tensor:
        """Weights of rows, fp32 [R, width]."""
        return self._floats(rows)[:, self.width : 2 * self.width]

    def hidden_states(self, rows: Tensor) -> Tensor:
        """Hidden states of rows in `dtype`, [R, hidden]; a view unless `fp8`."""
        if not self.fp8:
            return self._body(rows, self.dtype)
        body = rows[:, self.head_bytes : self.head_bytes + self.hidden].contiguous().view(FP8).float()
        scale = self._floats(rows)[:, 2 * self.width :].repeat_interleave(FP8_BLOCK, dim=1)[:, : self.hidden]
        return (body * scale).to(self.dtype)

    def _body(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        return rows[:, self.head_bytes : self.head_bytes + self.hidden * dtype.itemsize].view(dtype)

    def _ints(self, rows: Tensor) -> Tensor:
        return rows[:, : self.head_bytes].view(torch.int32)

    def _floats(self, rows: Tensor) -> Tensor:
        return rows[:, : self.head_bytes].view(torch.float32)
