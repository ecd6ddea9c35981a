"""Sampled answers that are the same in every process: the noise of a row depends on its number alone.

A model picks the token with the largest sum of logit and noise, which is sampling (Gumbel). `answer` reads prompts of
one length at a time and then takes all rows a token further: no forward has padding, which an engine would not send.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, LogitsProcessor


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How answers are picked: all have `new_tokens`, none ends before."""

    new_tokens: int
    temperature: float
    seed: int

    def noise(self, rows: Sequence[int], vocabulary: int) -> Tensor:
        """Of these rows, float32 [R, new_tokens, V]."""
        each = []
        for row in rows:
            generator = torch.Generator().manual_seed((self.seed << 32) + row)
            drawn = torch.rand(self.new_tokens, vocabulary, generator=generator).clamp_(1e-9, 1 - 1e-7)
            each.append(drawn.log_().neg_().log_().neg_())
        return torch.stack(each) if each else torch.empty(0, self.new_tokens, vocabulary)

    def pick(self, logits_RV: Tensor, noise_RV: Tensor, end: int | None) -> Tensor:
        """The next token of each row, int64 [R]; never `end`."""
        score_RV = logits_RV.float() / self.temperature + noise_RV
        if end is not None:
            score_RV[:, end] = -torch.inf
        return score_RV.argmax(dim=1)


class Noise(LogitsProcessor):
    """The same for `generate`, which is to take the largest (`do_sample=False`)."""

    def __init__(self, sampling: Sampling, noise_RSV: Tensor, end: int | None) -> None:
        self._sampling, self._noise_RSV, self._end, self._step = sampling, noise_RSV, end, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = self._sampling.pick(scores, self._noise_RSV[:, self._step], self._end)
        self._step += 1
        return functional.one_hot(chosen, scores.shape[1]).float()


def forwards(lengths: Sequence[int]) -> int:
    """How many forwards read prompts of these lengths: those that are alike go together."""
    return len(set(lengths))


@torch.no_grad()
def answer(
    model: Any,
    prompts: Sequence[Sequence[int]],
    noise_RSV: Tensor,
    sampling: Sampling,
    *,
    most: int,
    join: Callable[[], None],
    read: Callable[[], None],
) -> list[list[int]]:
    """The answers to this rank's prompts.

    Args:
        model: A model of transformers 5.
        prompts: Ids of the prompts of this rank.
        noise_RSV: Their `Sampling.noise`.
        sampling: How to pick.
        most: The largest `forwards` of any rank: all ranks run as many.
        join: Takes part in a forward of the others.
        read: Is called when all prompts are read.
    """
    end = model.config.eos_token_id
    cached = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    by_length: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(row)
    caches, logits_RV = [], torch.empty(len(prompts), model.config.vocab_size)
    for rows in by_length.values():
        out = model(input_ids=torch.tensor([list(prompts[row]) for row in rows]), use_cache=True, logits_to_keep=1)
        caches.append(out[cached])
        logits_RV[rows] = out.logits[:, -1].float()
    for _ in range(most - len(by_length)):
        join()
    read()
    if not prompts:
        for _ in range(sampling.new_tokens - 1):
            join()
        return []
    length_R = torch.tensor([len(prompt) for prompt in prompts])
    order_R = torch.tensor([row for rows in by_length.values() for row in rows]).argsort()
    cache, mask_RT = _together(caches, list(by_length), order_R), _mask(length_R)
    chosen = [sampling.pick(logits_RV, noise_RSV[:, 0], end)]
    for step in range(1, sampling.new_tokens):
        mask_RT = functional.pad(mask_RT, (0, 1), value=1)
        out = model(
            input_ids=chosen[-1][:, None],
            attention_mask=mask_RT,
            position_ids=(length_R + step - 1)[:, None],
            use_cache=True,
            **{cached: cache},
        )
        chosen.append(sampling.pick(out.logits[:, -1], noise_RSV[:, step], end))
    return torch.stack(chosen, dim=1).tolist()


def _together(caches: Sequence[Any], lengths: Sequence[int], order_R: Tensor) -> DynamicCache:
    """One cache of all rows in this order, the shorter ones with nothing before them."""
    both = DynamicCache()

    def rows(parts: Sequence[Tensor]) -> Tensor:
        shifts = [max(lengths) - length for length in lengths]
        return torch.cat([functional.pad(one, (0, 0, by, 0)) for one, by in zip(parts, shifts, strict=True)])[order_R]

    for layer in range(len(caches[0].layers)):
        held = [cache.layers[layer] for cache in caches]
        both.update(rows([one.keys for one in held]), rows([one.values for one in held]), layer)
    return both


def _mask(length_R: Tensor) -> Tensor:
    """What counts of the rows, int64 [R, T]."""
    longest = int(length_R.max())
    return (torch.arange(longest) >= longest - length_R[:, None]).long()
