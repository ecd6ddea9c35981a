"""Grouped experts are the experts one by one, on every path."""

from __future__ import annotations

from typing import Any

import pytest
from moe import torch

from placement.errors import OptionError
from placement.runtime import GroupedExperts, split_interleaved
from placement.runtime import experts as module

SLOTS, HIDDEN, INNER = 4, 32, 48


def weights(dtype: torch.dtype, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: (torch.randn(*shape, generator=generator) / 6).to(dtype)  # noqa: E731
    return {
        "gate_up": draw(SLOTS, HIDDEN, 2 * INNER),
        "down": draw(SLOTS, INNER, HIDDEN),
        "gate_up_bias": draw(SLOTS, 2 * INNER),
        "down_bias": draw(SLOTS, HIDDEN),
    }


def one_by_one(rows: Any, counts: list[int], activation: str, w: dict[str, Any]) -> Any:
    """In fp32, straight from the definition in the models' own code."""
    out = []
    for s, part in enumerate(rows.float().split(counts)):
        inner = part @ w["gate_up"][s].float() + w["gate_up_bias"][s].float()
        gate, up = inner[:, :INNER], inner[:, INNER:]
        if activation == "swiglu":
            glu = gate / (1 + torch.exp(-gate)) * up
        else:
            gate, up = gate.clamp(max=7), up.clamp(-7, 7)
            glu = (up + 1) * gate / (1 + torch.exp(-1.702 * gate))
        out.append(glu @ w["down"][s].float() + w["down_bias"][s].float())
    return torch.cat(out)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("activation", ["swiglu", "gpt-oss"])
@pytest.mark.parametrize("counts", [[3, 0, 7, 1], [0, 0, 0, 0], [0, 0, 11, 0]])
@pytest.mark.parametrize("grouped", [True, False])
def test_grouped_is_one_by_one(
    dtype: torch.dtype, bound: float, activation: str, counts: list[int], grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Empty slots, no rows at all, biases; with grouped_mm where torch has it, and with the loop."""
    if not grouped:
        monkeypatch.setattr(module, "_has_grouped_mm", lambda rows, weight: False)
    w = weights(dtype)
    rows = (torch.randn(sum(counts), HIDDEN, generator=torch.Generator().manual_seed(1))).to(dtype)
    experts = GroupedExperts(activation=activation, **w)
    out = experts(rows, torch.tensor(counts))
    assert out.dtype == dtype
    want = one_by_one(rows, counts, activation, w)
    bound *= float(want.abs().max()) if sum(counts) else 1.0
    torch.testing.assert_close(out.float(), want, rtol=0, atol=bound)
    transposed = w | {name: w[name].transpose(1, 2).contiguous().transpose(1, 2) for name in ("gate_up", "down")}
    again = GroupedExperts(activation=activation, **transposed)(rows, torch.tensor(counts))
    torch.testing.assert_close(again.float(), out.float(), rtol=0, atol=bound)


@pytest.mark.parametrize("activation", ["swiglu", "gpt-oss"])
def test_padded_is_grouped(activation: str) -> None:
    """Every slot with as many rows as the others."""
    w = weights(torch.float32)
    rows = torch.randn(SLOTS, 5, HIDDEN)
    experts = GroupedExperts(activation=activation, **w)
    want = experts(rows.flatten(0, 1), torch.full((SLOTS,), 5)).view(SLOTS, 5, HIDDEN)
    torch.testing.assert_close(experts.padded(rows), want, rtol=1e-5, atol=1e-5)


def test_against_the_layers_of_transformers() -> None:
    """GPT-OSS's own experts, whose gate and up columns are interleaved."""
    gpt_oss = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss")
    config = pytest.importorskip("transformers").GptOssConfig(
        hidden_size=HIDDEN, intermediate_size=INNER, num_local_experts=SLOTS, num_experts_per_tok=1
    )
    theirs = gpt_oss.GptOssExperts(config)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(parameter.numel()))
    ours = GroupedExperts(
        gate_up=split_interleaved(theirs.gate_up_proj.detach()),
        down=theirs.down_proj.detach(),
        activation="gpt-oss",
        gate_up_bias=split_interleaved(theirs.gate_up_proj_bias.detach()),
        down_bias=theirs.down_proj_bias.detach(),
    )
    x, counts = torch.randn(12, HIDDEN), torch.tensor([5, 0, 4, 3])
    ids = torch.repeat_interleave(torch.arange(SLOTS), counts)[:, None]
    with torch.no_grad():
        want = theirs(x, ids, torch.ones(12, 1))
    torch.testing.assert_close(ours(x, counts), want.view(12, HIDDEN), rtol=1e-4, atol=1e-4)


def test_weights_that_do_not_fit() -> None:
    """Told in one line."""
    w = weights(torch.float32)
    with pytest.raises(OptionError, match="do not fit"):
        GroupedExperts(gate_up=w["gate_up"], down=w["down"].transpose(1, 2))
    with pytest.raises(OptionError, match="activation='relu' is unknown; choose one of swiglu, gpt-oss"):
        GroupedExperts(gate_up=w["gate_up"], down=w["down"], activation="relu")
