"""The router of a synthetic model: random parameters of every layer, and the top-k sets of given latents."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.support.parallel import run_tasks
from placement.traces.format import id_dtype
from placement.traces.synthetic.likeness import Likeness, pair_share
from placement.traces.synthetic.presets import TraceShape
from placement.traces.synthetic.strengths import MOST_SHARE, Strengths
from placement.traces.synthetic.synth_kernels import GUMBEL, route

PLAN, TOPICS, LAYER, REQUEST, PILOT = range(5)
PILOT_TOKENS = 2_048
BALANCE_STEPS = 16
BALANCE_PACE, FIT_PACE = 1.0, 0.625  # strong pairs make long steps overshoot
WEAKEST, STRONGEST, STRONGER = 0.5, 64.0, 1.6  # how far pairs may decide, and what is tried after what
FIT_STEPS = 6  # of balance for each strength that is tried


def generator_of(seed: int, *path: int) -> np.random.Generator:
    return np.random.default_rng([seed, *path])


def normal(generator: np.random.Generator, *shape: int) -> npt.NDArray[np.float32]:
    return generator.standard_normal(shape, dtype=np.float32)


class SyntheticRouter:
    """`latent_TR` that it reads is the context and the token's own latent side by side.

    bias_LE    float32, what every expert's logit starts from
    weight_LRE float32, how the experts read the latents
    """

    def __init__(self, shape: TraceShape, strengths: Strengths, seed: int, like: Likeness | None = None) -> None:
        model = shape.model
        self.like = like
        sizes = (model.num_layers, model.num_experts)
        ranks = strengths.ranks(model.num_experts)
        self.shape = shape
        self.bias_LE = np.zeros(sizes, dtype=np.float32)
        self.target_LE = np.empty(sizes, dtype=np.float64)
        self.weight_LRE = np.empty((sizes[0], sum(ranks), sizes[1]), dtype=np.float32)
        self.scale_LE = np.empty(sizes)
        self.key_L = np.empty(sizes[0], dtype=np.uint64)
        for layer in range(sizes[0]):
            generator = generator_of(seed, LAYER, layer)
            spread_E = generator.permutation(strengths.loads_E(sizes[1]))
            self.target_LE[layer] = np.minimum(spread_E / spread_E.mean() * model.top_k / sizes[1], MOST_SHARE)
            gain = min(1.0, (layer + 1) / strengths.ramp)
            context, token = (_loadings(generator, rank, sizes[1], strengths.features) for rank in ranks)
            self.weight_LRE[layer] = np.concatenate([context * gain, token * strengths.token])
            self.scale_LE[layer] = strengths.scale(gain)
            self.key_L[layer] = generator.integers(2**64, dtype=np.uint64)
        if like is not None:
            self.target_LE = np.clip(like.share_LE, 0.5 / like.num_tokens, MOST_SHARE)
        if like is not None and like.pairs_L is not None:
            total = np.hypot(strengths.context(), strengths.token)
            for layer, pairs in enumerate(like.pairs_L):
                vectors_RE = pairs.vectors_RE(sizes[1])
                self.weight_LRE[layer] = np.concatenate([vectors_RE, vectors_RE * strengths.token]) / total
                self.scale_LE[layer] = np.sqrt((vectors_RE**2).sum(axis=0))

    def balance(self, pilot_TR: npt.NDArray[np.float32], executor: Executor | None) -> None:
        """Set the bias so that the loads of the pilot tokens come near the target: what the balancing of training does.

        Without it, models of many experts would have dead ones and few that take all, as no trained model has.
        """

        run_tasks(lambda layer: self._balance(layer, pilot_TR), range(len(self.bias_LE)), executor)

    def _balance(self, layer: int, pilot_TR: npt.NDArray[np.float32]) -> None:
        if self.like is None or self.like.pairs_L is None:
            self._near_target(layer, pilot_TR, BALANCE_STEPS, BALANCE_PACE)
            return
        pairs = self.like.pairs_L[layer]
        unit_RE, unit_E = self.weight_LRE[layer].copy(), self.scale_LE[layer].copy()
        self.scale_LE[layer] = 1.0
        strength, share, before = WEAKEST, 0.0, (0.0, 0.0)  # the logarithm of the strength, and the share with it

        def set_strength(strength: float) -> None:
            scale_E = np.hypot(unit_E * strength, 1.0)
            self.bias_LE[layer] *= scale_E / self.scale_LE[layer]
            self.weight_LRE[layer], self.scale_LE[layer] = unit_RE * np.float32(strength), scale_E

        while True:
            set_strength(strength)
            self._near_target(layer, pilot_TR, FIT_STEPS, FIT_PACE)
            ids_TK, _ = self._route(pilot_TR, layer, -len(pilot_TR))
            share = pair_share(ids_TK, pairs.pair_M2, self.bias_LE.shape[1])
            if share >= pairs.share or strength >= STRONGEST:
                break
            before, strength = (np.log(strength), share), strength * STRONGER
        if strength > WEAKEST and share > pairs.share:  # between the last two
            part = (pairs.share - before[1]) / (share - before[1])
            set_strength(np.exp(before[0] + part * np.log(STRONGER)))
        self._near_target(layer, pilot_TR, BALANCE_STEPS, FIT_PACE)

    def _near_target(self, layer: int, pilot_TR: npt.NDArray[np.float32], steps: int, pace: float) -> None:
        for step in range(steps):
            ids_TK, _ = self._route(pilot_TR, layer, -len(pilot_TR))
            share_E = np.bincount(ids_TK.ravel(), minlength=self.bias_LE.shape[1]) / len(pilot_TR)
            missing_E = np.log(self.target_LE[layer] / np.maximum(share_E, self.target_LE[layer] / 20))
            self.bias_LE[layer] += self.scale_LE[layer] * (0.4 - 0.3 * step / steps) * pace * missing_E

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
