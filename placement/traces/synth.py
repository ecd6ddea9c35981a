"""Synthetic traces from a latent-topic model, with the statistics of a real one.

Token t chooses in layer l the K experts with the highest

    popularity_l + gain_l * context_t . W_l + token_t . V_l + Gumbel noise

The context, the same in all layers, is the topic: the sum of a vector of the token's domain, of its category, of its
request, and of a process that drifts along the request. The token's own latent is fresh for each token. W, V and the
popularity of experts are random for each layer; the gain is small in the first layers, which see more of the token
than of what was said before. Popularity is set so that the experts' loads over many topics are as unequal as wanted,
as the balancing of training does. It makes load skew; low-rank latents make co-activation; domains make drift;
what persists of the context makes consecutive tokens overlap. `Strengths` says how much of each: its defaults were
fitted on these four statistics of a real GPT-OSS-20B trace, and on nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.errors import OptionError
from placement.traces.format import SHARD_TOKENS, RequestEntry
from placement.traces.storage.shard_writer import TokenPiece
from placement.traces.synthetic.likeness import RANK, Likeness
from placement.traces.synthetic.presets import TraceShape
from placement.traces.synthetic.strengths import Strengths
from placement.traces.synthetic.synth_kernels import smooth
from placement.traces.synthetic.synth_requests import SyntheticRequests, plan_requests
from placement.traces.synthetic.synth_router import (
    PILOT,
    PILOT_TOKENS,
    PLAN,
    REQUEST,
    TOPICS,
    SyntheticRouter,
    generator_of,
    normal,
)
from placement.traces.write import new_folder, write_trace


def synthesize(
    shape: TraceShape,
    *,
    num_tokens: int,
    num_requests: int,
    seed: int = 0,
    num_domains: int = 11,
    num_categories: int = 12,
    weights: bool = False,
    strengths: Strengths | None = None,
    like: Likeness | None = None,
    executor: Executor | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[tuple[RequestEntry, ...], Iterator[TokenPiece]]:
    """The requests and the tokens of a synthetic trace, to be given to `write_trace`; memory is that of one shard.

    The seed alone decides, not the executor.

    Args:
        shape: Layers, experts and routing of the model, such as one of `PRESETS`.
        num_tokens: Tokens of all requests together.
        num_requests: Requests, which share the tokens.
        seed: Seed of everything random.
        num_domains: Domains of the requests.
        num_categories: Categories of each domain.
        weights: Also give router weights, the softmax over a token's top-k logits.
        strengths: How much domains, requests and tokens decide; None: those of the shape.
        like: Loads and pairs of experts to resemble, of the model of the shape.
        executor: Makes pieces side by side; None: one after another.
        progress: Called with the tokens of each piece.

    Raises:
        OptionError: A number is out of range.
    """
    if seed < 0:
        raise OptionError(f"seed={seed} must not be negative")
    requests = plan_requests(generator_of(seed, PLAN), num_tokens, num_requests, num_domains, num_categories)
    strengths = strengths or shape.strengths
    if like is not None and like.pairs_L is not None:
        rank = min(RANK, shape.model.num_experts)
        strengths = replace(strengths, context_rank=rank, token_rank=rank, rank_growth=0.0)
    topics = _Topics(requests, num_domains, num_categories, strengths, shape.model.num_experts, seed)
    router = SyntheticRouter(shape, strengths, seed, like)
    router.balance(topics.pilot(), executor)
    return requests.entries, _pieces(router, topics, weights, executor, progress)


def write_synthetic(
    out_dir: str | Path,
    shape: TraceShape,
    *,
    num_tokens: int,
    num_requests: int,
    seed: int = 0,
    weights: bool = False,
    like: Likeness | None = None,
    executor: Executor | None = None,
) -> int:
    """Write a synthetic trace to the new folder `out_dir`; its manifest says that it is one. Returns the tokens.

    Where an error is raised, `out_dir` is as it was before. The other arguments are those of `synthesize`.

    Raises:
        OptionError: A number is out of range.
        OutputError: `out_dir` exists already, or cannot be written.
    """
    with new_folder(out_dir) as folder:
        requests, pieces = synthesize(
            shape,
            num_tokens=num_tokens,
            num_requests=num_requests,
            seed=seed,
            weights=weights,
            like=like,
            executor=executor,
        )
        made: dict[str, Any] = {"seed": seed, "groups_per_token": shape.groups_per_token or 0}
        if like is not None:
            made["like"] = like.model.name
        extras = {"source": "synthetic", "synthetic": made}
        return write_trace(folder, pieces, model=shape.model, requests=requests, extras=extras)


class _Topics:
    """The latents of requests and tokens."""

    def __init__(
        self,
        requests: SyntheticRequests,
        num_domains: int,
        num_categories: int,
        strengths: Strengths,
        num_experts: int,
        seed: int,
    ) -> None:
        self.requests, self.strengths, self.seed = requests, strengths, seed
        self.rank, self.token_rank = strengths.ranks(num_experts)
        generator = generator_of(seed, TOPICS)
        self.domain_DR = strengths.domain * normal(generator, num_domains, self.rank)
        self.category_CR = strengths.category * normal(generator, num_domains * num_categories, self.rank)

    def topic(self, request: int) -> npt.NDArray[np.float32]:
        """What domain and category say about a request, [R]."""
        domain, category = self.requests.domain_Q[request], self.requests.category_Q[request]
        return np.asarray(self.domain_DR[domain] + self.category_CR[category])

    def pilot(self) -> npt.NDArray[np.float32]:
        """Latents of unrelated tokens, each of a request of its own in the same domains, [T, R]."""
        generator = generator_of(self.seed, PILOT)
        own = float(np.hypot(self.strengths.request, self.strengths.process))
        context_TR = own * normal(generator, PILOT_TOKENS, self.rank)
        for row, request in enumerate(generator.integers(len(self.requests.entries), size=PILOT_TOKENS).tolist()):
            context_TR[row] += self.topic(request)
        return np.concatenate([context_TR, normal(generator, PILOT_TOKENS, self.token_rank)], axis=1)


class _Request:
    """One request that is being written, from token `done` on."""

    def __init__(self, topics: _Topics, number: int) -> None:
        self.number, self.done = number, 0
        self.length = int(topics.requests.length_Q[number])
        self.prompt = int(topics.requests.prompt_Q[number])
        self.strengths = topics.strengths
        self.generator = generator_of(topics.seed, REQUEST, number)
        self.topic_R = topics.topic(number) + self.strengths.request * normal(self.generator, topics.rank)
        self.state_R = normal(self.generator, topics.rank)
        self.token_rank = topics.token_rank

    def latents(self, size: int) -> npt.NDArray[np.float32]:
        """Latents of the next `size` tokens, [T, R]."""
        context_TR = normal(self.generator, size, len(self.topic_R))
        smooth(context_TR, self.strengths.memory, self.state_R)
        context_TR = context_TR * np.float32(self.strengths.process) + self.topic_R
        return np.concatenate([context_TR, normal(self.generator, size, self.token_rank)], axis=1)


def _pieces(
    router: SyntheticRouter,
    topics: _Topics,
    weights: bool,
    executor: Executor | None,
    progress: Callable[[int], None] | None,
) -> Iterator[TokenPiece]:
    total = int(topics.requests.length_Q.sum())
    upcoming = iter(range(len(topics.requests.entries)))
    request: _Request | None = None
    for first in range(0, total, SHARD_TOKENS):
        size = min(SHARD_TOKENS, total - first)
        latent_TR = np.empty((size, topics.rank + topics.token_rank), dtype=np.float32)
        request_T, position_T = np.empty(size, dtype=np.int32), np.empty(size, dtype=np.int32)
        phase_T = np.empty(size, dtype=np.uint8)
        filled = 0
        while filled < size:
            if request is None or request.done == request.length:
                request = _Request(topics, next(upcoming))
            tokens = min(size - filled, request.length - request.done)
            rows = slice(filled, filled + tokens)
            latent_TR[rows] = request.latents(tokens)
            request_T[rows] = request.number
            position_T[rows] = np.arange(request.done, request.done + tokens)
            phase_T[rows] = position_T[rows] >= request.prompt
            request.done += tokens
            filled += tokens
        ids_LTK, weights_LTK = router.choose(latent_TR, first, weights, executor)
        yield TokenPiece(
            ids_LTK=ids_LTK,
            weights_LTK=weights_LTK,
            request_T=request_T,
            position_T=position_T,
            phase_T=phase_T,
        )
        if progress is not None:
            progress(size)
