"""Capacity-Aware Inference (arXiv 2503.05066) written from its equations, on a whole model in one process.

With t tokens, k experts a token and n experts in all, an expert's expected load is N = t k / n (3), and its capacity is
C = gamma N, rounded up. Token Drop: an expert that more tokens want keeps the C with the highest gate scores. Expanded
Drop: a token's candidates are also the experts on its own device. Forwards of one token a row (decode) have no limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from moe import torch

Tensor = torch.Tensor


@dataclass
class Paper:
    """Runs `model` on the tokens of all devices, a device's rows after another's; `held` are the experts of each.

    dropped  of each forward, the assignments of the last layer that were dropped
    kept     of each layer of each forward, the experts of every token that is no padding, and None for padding
    """

    model: Any
    held: list[list[int]]
    gamma: float
    expanded: bool
    sigmoid: bool
    normalized: bool
    keep: str = "score"  # or "weight": of the sum, which the paper does not go by
    text: Tensor | None = None  # [rows, length] of the prompt: False for images
    dropped: list[int] = field(default_factory=list)
    kept: list[list[set[int] | None]] = field(default_factory=list)
    shape: tuple[int, int] = (0, 0)
    real: Any = None

    def __post_init__(self) -> None:
        self.model.model.register_forward_pre_hook(self._see, with_kwargs=True)
        blocks = [one for one in self.model.modules() if hasattr(one, "experts") and hasattr(one, "gate")]
        for block in blocks:
            block.experts.forward = self._forward(block.gate, block.experts)
        self.last = blocks[-1].experts

    def _see(self, _: Any, args: Any, given: Any) -> None:
        fed = next(one for one in (*args, given.get("input_ids"), given.get("inputs_embeds")) if one is not None)
        self.shape = tuple(fed.shape[:2])
        mask = given.get("attention_mask")
        real = torch.ones(self.shape) if mask is None else mask[:, -self.shape[1] :]
        self.real = real.bool().flatten().tolist()

    def _forward(self, gate: Any, experts: Any) -> Any:
        def forward(x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
            logits = x.float() @ gate.weight.float().T
            score_TE = (logits.sigmoid() if self.sigmoid else logits.softmax(dim=1)).tolist()
            kept = self._kept(score_TE if self.keep != "weight" else _spread(weights, ids, logits), ids.tolist())
            self.kept.append([experts if real else None for experts, real in zip(kept, self.real, strict=True)])
            y = torch.zeros_like(x)
            for t, (own, weight) in enumerate(zip(ids.tolist(), weights.tolist(), strict=True)):
                ratio = sum(weight) / sum(score_TE[t][e] for e in own)
                given = {e: w for e, w in zip(own, weight, strict=True) if e in kept[t]}
                given |= {e: score_TE[t][e] * ratio for e in kept[t] if e not in own}
                scale = sum(weight) / sum(given.values()) if self.normalized and given else 1.0
                for e, w in given.items():
                    gate_up = experts.gate_up_proj[e] @ x[t]
                    a, b = gate_up.chunk(2)
                    y[t] += scale * w * (experts.down_proj[e] @ (experts.act_fn(a) * b))
            if experts is self.last:
                sets = zip(ids.tolist(), kept, self.real, strict=True)
                self.dropped.append(sum(e not in left for own, left, real in sets if real for e in own))
            return y

        return forward

    def _kept(self, score_TE: list[list[float]], ids_TK: list[list[int]]) -> list[set[int]]:
        rows, length = self.shape
        if length == 1:
            return [set(own) for own in ids_TK]
        tokens = [t for t in range(rows * length) if self.real[t]]
        capacity = math.ceil(self.gamma * len(tokens) * len(ids_TK[0]) / len(score_TE[0]) - 1e-9)
        kept: list[set[int]] = [set() if real else set(own) for own, real in zip(ids_TK, self.real, strict=True)]
        for e in range(len(score_TE[0])):
            wanting = [t for t in tokens if e in ids_TK[t] or (self.expanded and e in self._near(t))]
            if self.keep in ("score", "weight"):
                wanting.sort(key=lambda t: -score_TE[t][e])
            elif self.keep == "last":
                wanting.reverse()
            if self.text is not None:
                wanting.sort(key=lambda t: not self.text.flatten()[t])
            for t in wanting[:capacity]:
                kept[t].add(e)
        return kept

    def _near(self, token: int) -> list[int]:
        rows, length = self.shape
        return self.held[token // length // (rows // len(self.held))]


def _spread(weight_TK: Tensor, ids_TK: Tensor, like_TE: Tensor) -> list[list[float]]:
    """Weights by expert, 0 for those that are not in a token's set."""
    return torch.zeros_like(like_TE).scatter_(1, ids_TK, weight_TK.float()).tolist()  # type: ignore[no-any-return]
