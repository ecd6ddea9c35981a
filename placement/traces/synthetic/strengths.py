"""How much each part of the synthetic router decides, and how unequal the loads of its experts are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MOST_SHARE = 0.9  # of the tokens, that an expert is to get


@dataclass(frozen=True, slots=True, kw_only=True)
class Strengths:
    """Standard deviations of what parts of the context and the token add to a logit, next to Gumbel noise of scale 1.

    popularity                half the range of the logarithms of the loads that the experts have in the long run
    load_cv, load_tail        instead: standard deviation / mean of these loads, and their distribution: "gamma" (most
                              experts have little) or "lognormal" (few have very much)
    context_rank, token_rank  dimensions of the two latents for 32 experts: the fewer, the more co-activation
    rank_growth               the dimensions grow with this power of the number of experts
    features                  dimensions of a latent that an expert reads
    memory                    correlation of the drifting process from one token to the next
    ramp                      the gain of the context is min(1, (layer + 1) / ramp)
    """

    popularity: float = 1.2
    load_cv: float | None = None
    load_tail: str = "gamma"
    domain: float = 3.4
    category: float = 1.0
    request: float = 8.6
    process: float = 10.0
    token: float = 5.6
    context_rank: int = 5
    token_rank: int = 5
    rank_growth: float = 0.5
    features: int = 2
    memory: float = 0.6
    ramp: float = 3.0

    def ranks(self, num_experts: int) -> tuple[int, int]:
        """Dimensions of the context and of the token's own latent."""
        grown = (num_experts / 32) ** self.rank_growth
        return max(2, round(self.context_rank * grown)), max(2, round(self.token_rank * grown))

    def context(self) -> float:
        """Standard deviation of what the context adds to a logit."""
        return math.hypot(self.domain, self.category, self.request, self.process)

    def scale(self, gain: float) -> float:
        """Standard deviation of a logit in a layer with this gain of the context."""
        return math.hypot(gain * self.context(), self.token, 1.0)

    def loads_E(self, num_experts: int) -> npt.NDArray[np.float64]:
        """Loads of the experts in the long run, ascending, in any unit, float64 [E]."""
        import numpy as np  # the names of presets are shown with the help, which is printed at once

        if self.load_cv is None:
            return np.exp(self.popularity * np.linspace(-1, 1, num_experts))
        from scipy.special import gammaincinv, ndtri  # only the presets that name their loads need it

        middle_E = (np.arange(num_experts) + 0.5) / num_experts
        if self.load_tail == "lognormal":
            return np.asarray(np.exp(math.sqrt(math.log1p(self.load_cv**2)) * ndtri(middle_E)))
        return np.asarray(gammaincinv(self.load_cv**-2, middle_E))
