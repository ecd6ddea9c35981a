"""A small MoE layer computed without the runtime, and maps to run it on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from placement import Model, Placement
from placement.core.placement import wasted_P

torch = pytest.importorskip("torch")
Tensor = torch.Tensor


def make_placement(
    num_nodes: int,
    gpus_per_node: int,
    slots_per_gpu: int,
    num_experts: int,
    top_k: int,
    *,
    seed: int = 0,
    layers: int = 1,
    wasted: bool = False,
) -> Placement:
    """Random slots; where there are more than experts some experts have several, with `wasted` also on one rank."""
    rng = np.random.default_rng(seed)
    num_slots = num_nodes * gpus_per_node * slots_per_gpu
    rows: list[np.ndarray] = []
    while len(rows) < layers:
        extra = rng.integers(0, num_experts, num_slots - num_experts)
        row = rng.permutation(np.concatenate([np.arange(num_experts), extra]))
        if wasted_P(row, num_nodes * gpus_per_node).any() == wasted:
            rows.append(row)
    model = Model(name="m", layer_ids=tuple(range(layers)), num_experts=num_experts, top_k=top_k)
    return Placement(
        model=model,
        num_nodes=num_nodes,
        gpus_per_node=gpus_per_node,
        slots_per_gpu=slots_per_gpu,
        phy2log_LP=np.stack(rows),
    )


@dataclass(frozen=True)
class Tokens:
    """What one rank brings."""

    x: Tensor
    ids: Tensor
    weights: Tensor
    scores: Tensor


def make_tokens(
    sizes: list[int],
    num_experts: int,
    top_k: int,
    *,
    hidden: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    hot: bool = False,
) -> list[Tokens]:
    """Tokens of every rank; `hot`: expert 0 is in every top-k set."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for size in sizes:
        logits = torch.randn(size, num_experts, generator=generator)
        if hot:
            logits[:, 0] += 50
        scores = logits.softmax(dim=1)
        weights, ids = scores.topk(top_k, dim=1)
        x = torch.randn(size, hidden, generator=generator).to(dtype)
        out.append(Tokens(x, ids, weights, scores))
    return out


def make_matrices(num_experts: int, hidden: int = 16, seed: int = 1) -> Tensor:
    """One matrix an expert, [E, D, D]: an expert is tanh(x @ matrix)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_experts, hidden, hidden, generator=generator) / hidden**0.5


def expert(x: Tensor, matrix: Tensor) -> Tensor:
    return torch.tanh(x.float() @ matrix).to(x.dtype)


def dense(tokens: Tokens, matrices: Tensor) -> Tensor:
    """Every expert of every token, one by one, in fp32."""
    y = torch.zeros(tokens.x.shape)
    for t, (ids, weights) in enumerate(zip(tokens.ids.tolist(), tokens.weights.tolist(), strict=True)):
        for e, weight in zip(ids, weights, strict=True):
            if e >= 0:
                y[t] += weight * torch.tanh(tokens.x[t].float() @ matrices[e])
    return y


def run_experts(rows: Tensor, counts: Tensor, held: list[int], matrices: Tensor) -> Tensor:
    """The experts of one rank's slots on rows in the order of slots."""
    parts = rows.split(counts.tolist())
    return torch.cat([expert(part, matrices[e]) for part, e in zip(parts, held, strict=True)])
