"""How many assignments an expert or a rank takes, and which: what a user chooses (arXiv 2503.05066)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from placement.errors import OptionError

NONE, DROP, EXPANDED = "none", "drop", "expanded"
MOST_LOAD = 1024
LARGEST_PRIORITY = (1 << 16) - 1
ROUNDING = 1e-9  # a capacity above a whole number by less, in parts of it, is that number
LOAD_UNIT = 1 << 16  # loads are whole numbers of 1/65536, so that sums do not depend on their order


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityPolicy:
    """Every slot takes at most C = ceil(gamma * T * K / E) assignments, with the tokens T of all ranks: gamma times the
    mean of an expert, whatever the number of slots, so that gamma means the same under every map. An expert with two
    slots takes up to 2 C.

    Whatever `keep` says, a token of higher priority goes before one of lower; ties go to the lower source rank, then to
    the earlier row.

    Attributes:
        mode: `none`; `drop`: what is over C is dropped (Token Drop); `expanded`: a token's candidates are also the
            experts on its own rank, and every slot takes the best C of its candidates (Expanded Drop).
        gamma: Capacity factor, one number or one for each layer (absolute index).
        level: `expert`: C is for a slot; `device`: C = ceil(gamma * T * K / G) is for all slots of a rank together.
        spare_decode: Tokens of forwards with one token a row are neither limited nor counted (`attach` knows them).
        min_tokens: Steps with fewer tokens to limit, of all ranks or with scope `source` of this rank, are not limited.
        scope: `global`: the limit is on the tokens of all ranks, exact, agreed on before any token moves (24 bytes a
            candidate there, one back); `source`: each rank limits what it sends by its own tokens, no message.
        keep: Which assignments are kept: `score` (the highest of the router, before it scales those of a top-k set),
            `weight` (the highest of what experts' outputs weigh), `first`, `last` (by rank and row) or `random`.
        classes: Capacities by modality (after MACS, arXiv 2605.05225): tokens of a priority that is named have their
            own capacity, ceil(factor * gamma * mean) with the mean of their own assignments, so that it follows what a
            batch is made of; those of all other priorities share one with factor 1.
        max_extra: `expanded`: at most so many further experts for a token; None is all on its rank.
        renormalize: Scale what is left of a token's weights to the sum that they had; else a dropped weight is lost.
            None: as the model does with those of its top-k set, which `attach` knows; a layer alone does not scale.
        seed: Seed, where `keep` is `random`.
    """

    mode: str = NONE
    gamma: float | Mapping[int, float] = 1.5
    level: str = "expert"
    scope: str = "global"
    keep: str = "score"
    spare_decode: bool = True
    min_tokens: int = 0
    classes: Mapping[int, float] | None = None
    max_extra: int | None = None
    renormalize: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("mode", (NONE, DROP, EXPANDED)),
            ("level", ("expert", "device")),
            ("scope", ("global", "source")),
            ("keep", ("score", "weight", "first", "last", "random")),
        ):
            if getattr(self, name) not in allowed:
                raise OptionError(f"{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(allowed)}")
        for gamma in self.gamma.values() if isinstance(self.gamma, Mapping) else (self.gamma,):
            if not 0 < gamma < 1e6:
                raise OptionError(f"gamma={gamma} must be a positive number below 1e6")
        for priority, factor in (self.classes or {}).items():
            if not 0 <= priority <= LARGEST_PRIORITY or not 0 < factor < 1e6:
                raise OptionError(
                    f"classes has {priority}: {factor}; priorities from 0 to {LARGEST_PRIORITY} and positive factors "
                    "below 1e6 are allowed"
                )
        if self.max_extra is not None and self.max_extra < 0:
            raise OptionError(f"max_extra={self.max_extra} must be 0 or more, or None for no limit")
        if self.min_tokens < 0:
            raise OptionError(f"min_tokens={self.min_tokens} must be 0 or more")

    def gamma_of(self, layer: int) -> float:
        """Capacity factor of a layer.

        Raises:
            OptionError: No factor was given for the layer.
        """
        if not isinstance(self.gamma, Mapping):
            return self.gamma
        if layer not in self.gamma:
            raise OptionError(f"gamma has no value for layer {layer}; it has layers {sorted(self.gamma)}")
        return self.gamma[layer]

    @property
    def needs_scores(self) -> bool:
        """True if the policy looks at what the router gives all experts."""
        return self.mode == EXPANDED or (self.mode == DROP and self.keep == "score")

    def number(self) -> int:
        """A number that is the same on ranks with the same policy."""
        gamma = sorted(self.gamma.items()) if isinstance(self.gamma, Mapping) else self.gamma
        classes = sorted((self.classes or {}).items())
        limits = (self.mode, gamma, self.level, self.scope, classes, self.max_extra)
        words = (*limits, self.keep, self.renormalize, self.seed, self.spare_decode, self.min_tokens)
        return int.from_bytes(hashlib.sha256(repr(words).encode()).digest()[:7], "little")

    def class_factors(self) -> list[tuple[int, float]]:
        """Priorities that have a capacity of their own, with their factors; then all others (-1)."""
        return [*sorted((self.classes or {}).items()), (-1, 1.0)]

    def shares(self, units: int, layer: int) -> list[float]:
        """What one of `units` takes of the total load of each of `class_factors`, as a part of it."""
        return [factor * self.gamma_of(layer) / units for _, factor in self.class_factors()]


def limit_of(load: int, share: float) -> int:
    """C in units of load, for a total load in those units: whole assignments, rounded up."""
    mean = load * share / LOAD_UNIT
    return math.ceil(mean - ROUNDING * max(mean, 1.0)) * LOAD_UNIT


def limits_of(load_M: Tensor, share_M: Tensor) -> Tensor:
    """As `limit_of`, of loads int64 [M] on a device and shares float64 [M]; the host need not wait for it."""
    mean_M = load_M * share_M / LOAD_UNIT
    return (mean_M - mean_M.clamp(min=1.0) * ROUNDING).ceil().long() * LOAD_UNIT


def load_units(load_T: Tensor | None, num_tokens: int, device: torch.device) -> Tensor:
    """Loads of tokens as whole numbers, int64 [T]; 1 each where none are given."""
    if load_T is None:
        return torch.full((num_tokens,), LOAD_UNIT, dtype=torch.int64, device=device)
    return (load_T.double().nan_to_num().clamp(0, MOST_LOAD) * LOAD_UNIT).round().long()


def entropy_load(chance_TX: Tensor, text_T: Tensor) -> Tensor:
    """Loads of tokens, fp32 [T]: 1 for text; for others the entropy of their distribution over that of an even one.

    A patch of plain sky counts for little, so an expert takes more of them (after MACS, arXiv 2605.05225; its
    capacities by modality are `CapacityPolicy.classes`).

    Args:
        chance_TX: Any distribution of each token, rows that sum to 1: attention or router probabilities.
    """
    chance = chance_TX.float()
    entropy = -(chance * chance.clamp(min=1e-30).log()).sum(dim=1) / math.log(max(chance.shape[1], 2))
    return torch.where(text_T, torch.ones_like(entropy), entropy.clamp(0.0, 1.0))
