"""The router of a synthetic model: random parameters of every layer, and the top-k sets of given latents."""

from __future__ import annotations

import math
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.support.parallel import run_tasks
from placement.traces.format import id_dtype
from placement.traces.synthetic.presets import TraceShape
from placement.traces.synthetic.synth_kernels import GUMBEL, route

PLAN, TOPICS, LAYER, REQUEST, PILOT = range(5)
PILOT_TOKENS = 2_048
BALANCE_STEPS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Strengths:
    """Standard deviations of what parts of the context and the token add to a logit, next to Gumbel noise of scale 1.

    popularity                half the range of the logarithms of the loads that the experts have in the long run
    context_rank, token_rank  dimensions of the two latents for 32 experts: the fewer, the more co-activation
    features                  dimensions of a latent that an expert reads
    memory                    correlation of the drifting process from one token to the next
    ramp                      the gain of the context is min(1, (layer + 1) / ramp)
    """

    popularity: float = 1.2
    domain: float = 3.4
    category: float = 1.0
    request: float = 8.6
    process: float = 10.0
    token: float = 5.6
    context_rank: int = 5
    token_rank: int = 5
    features: int = 2
    memory: float = 0.6
    ramp: float = 3.0

    def ranks(self, num_experts: int) -> tuple[int, int]:
        """Dimensions of the context and of the token's own latent: in proportion to the root of the experts."""
        grown = np.sqrt(num_experts / 32)
        return max(2, round(self.context_rank * grown)), max(2, round(self.token_rank * grown))

    def scale(self, gain: float) -> float:
        """Standard deviation of a logit in a layer with this gain of the context."""
        context = gain * math.hypot(self.domain, self.category, self.request, self.process)
        return math.hypot(context, self.token, 1.0)


def generator_of(seed: int, *path: int) -> np.random.Generator:
    return np.random.default_rng([seed, *path])


def normal(generator: np.random.Generator, *shape: int) -> npt.NDArray[np.float32]:
    return generator.standard_normal(shape, dtype=np.float32)


class SyntheticRouter:
    """`latent_TR` that it reads is the context and the token's own latent side by side.

    bias_LE    float32, what every expert's logit starts from
    weight_LRE float32, how the experts read the latents
    """

    def __init__(self, shape: TraceShape, strengths: Strengths, seed: int) -> None:
        model = shape.model
        sizes = (model.num_layers, model.num_experts)
        ranks = strengths.ranks(model.num_experts)
        self.shape = shape
        self.bias_LE = np.zeros(sizes, dtype=np.float32)
        self.target_LE = np.empty(sizes, dtype=np.float64)
        self.weight_LRE = np.empty((sizes[0], sum(ranks), sizes[1]), dtype=np.float32)
        self.scale_L = np.empty(sizes[0])
        self.key_L = np.empty(sizes[0], dtype=np.uint64)
        for layer in range(sizes[0]):
            generator = generator_of(seed, LAYER, layer)
            spread_E = np.exp(strengths.popularity * generator.permutation(np.linspace(-1, 1, sizes[1])))
            self.target_LE[layer] = np.minimum(spread_E / spread_E.mean() * model.top_k / sizes[1], 0.9)
            gain = min(1.0, (layer + 1) / strengths.ramp)
            context, token = (_loadings(generator, rank, sizes[1], strengths.features) for rank in ranks)
            self.weight_LRE[layer] = np.concatenate([context * gain, token * strengths.token])
            self.scale_L[layer] = strengths.scale(gain)
            self.key_L[layer] = generator.integers(2**64, dtype=np.uint64)

    def balance(self, pilot_TR: npt.NDArray[np.float32], executor: Executor | None) -> None:
        """Set the bias so that the loads of the pilot tokens come near the target: what the balancing of training does.

        Without it, models of many experts would have dead ones and few that take all, as no trained model has.
        """

        def balance_layer(layer: int) -> None:
            for step in range(BALANCE_STEPS):
                ids_TK, _ = self._route(pilot_TR, layer, -len(pilot_TR))
                share_E = np.bincount(ids_TK.ravel(), minlength=self.bias_LE.shape[1]) / len(pilot_TR)
                missing_E = np.log(self.target_LE[layer] / np.maximum(share_E, self.target_LE[layer] / 20))
                self.bias_LE[layer] += self.scale_L[layer] * (0.4 - 0.3 * step / BALANCE_STEPS) * missing_E

        run_tasks(balance_layer, range(len(self.bias_LE)), executor)

    def choose(
        self, latent_TR: npt.NDArray[np.float32], first_token: int, weights: bool, executor: Executor | None
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.float16] | None]:
        """ids_LTK and, if asked for, weights_LTK: the softmax over the logits of the top-k set."""
        model = self.shape.model
        sizes = (model.num_layers, len(latent_TR), model.top_k)
        ids_LTK = np.empty(sizes, dtype=id_dtype(model.num_experts))
        weights_LTK = np.empty(sizes, dtype=np.float16) if weights else None

        def choose_layer(layer: int) -> None:
            ids_LTK[layer], logits_TK = self._route(latent_TR, layer, first_token)
            if weights_LTK is not None:
                share_TK = np.exp(logits_TK - logits_TK[:, :1])
                weights_LTK[layer] = share_TK / share_TK.sum(axis=1, keepdims=True)

        run_tasks(choose_layer, range(model.num_layers), executor)
        return ids_LTK, weights_LTK

    def _route(
        self, latent_TR: npt.NDArray[np.float32], layer: int, first_token: int
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
        model = self.shape.model
        ids_TK = np.empty((len(latent_TR), model.top_k), dtype=id_dtype(model.num_experts))
        logits_TK = np.empty(ids_TK.shape, dtype=np.float32)
        route(
            latent_TR,
            self.weight_LRE[layer],
            self.bias_LE[layer],
            self.key_L[layer],
            first_token,
            GUMBEL,
            model.num_groups or 1,
            self.shape.groups_per_token or 1,
            ids_TK,
            logits_TK,
        )
        return ids_TK, logits_TK


def _loadings(generator: np.random.Generator, rank: int, num_experts: int, features: int) -> npt.NDArray[np.float32]:
    """How the experts read a latent of `rank` dimensions, [R, E]: each reads `features` of them, with unit variance."""
    features = min(features, rank)
    dimension_ER = generator.permuted(np.tile(np.arange(rank), (num_experts, 1)), axis=1)
    reads_RE = (dimension_ER < features).T
    return np.asarray(reads_RE * normal(generator, rank, num_experts) / np.sqrt(features), dtype=np.float32)
