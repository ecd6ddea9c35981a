"""Maps of tiny models, and what such a model answers."""

from __future__ import annotations

import inspect
from typing import Any

from moe import make_placement, torch

from placement import Model, Placement

SHAPE = (2, 2)
STEPS = 3


def make_map(
    ids: tuple[int, ...], *, seed: int = 0, num_nodes: int = 2, gpus: int = 2, slots: int = 3, experts: int = 8
) -> Placement:
    """Eight experts in twelve slots."""
    found = make_placement(num_nodes, gpus, slots, experts, 2, seed=seed, layers=len(ids))
    return Placement(
        model=Model(name="m", layer_ids=ids, num_experts=experts, top_k=2),
        num_nodes=num_nodes,
        gpus_per_node=gpus,
        slots_per_gpu=slots,
        phy2log_LP=found.phy2log_LP,
    )


def prompt(rank: int) -> Any:
    """Ranks have batches of different shapes."""
    generator = torch.Generator().manual_seed(rank)
    return torch.randint(3, 64, (1 + rank % 2, 4 + rank), generator=generator)


@torch.no_grad()
def serve(model: Any, tokens: Any, steps: int = STEPS) -> list[Any]:
    """Logits of the prompt, then of greedy decoding with the cache."""
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    found, cache = [], None
    for _ in range(1 + steps):
        out = model(input_ids=tokens, use_cache=True, **{name: cache})
        found.append(out.logits)
        tokens, cache = out.logits[:, -1:].argmax(dim=-1), out[name]
    return found


def error(got: list[Any], want: list[Any]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(got, want, strict=True))
