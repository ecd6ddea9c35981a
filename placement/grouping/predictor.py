"""What a request will save at each home, foretold from its prompt and its labels by one linear model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from placement.errors import InputError
from placement.grouping.features import checked_prompt, label_features, prompt_features
from placement.grouping.gram_kernels import weighed

MOST_BYTES = 1_400_000  # of the tables; a file has a third more
LEAST_BUCKETS, MOST_BUCKETS = 1 << 10, 1 << 16


def buckets_for(num_nodes: int) -> int:
    """The most buckets, a power of two, with which the tables take MOST_BYTES: float16, a row for each node and one."""
    buckets = MOST_BUCKETS
    while buckets > LEAST_BUCKETS and buckets * 2 * (num_nodes + 1) > MOST_BYTES:
        buckets //= 2
    return buckets


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predictor:
    """A linear model over hashed features. Units: sends saved per token and layer.

    Attributes:
        idf_F: How rare a bucket is among prompts, float16 [F]; 0 where training saw none.
        weight_NF: What a feature adds at each home, float16 [N, F].
        mean_N: What requests save at each home, of which nothing is known, float64 [N].
        worth_tokens: How many observed tokens of a request tell as much as its prompt does.
        least_worth_tokens: How many tell as much as what all requests have in common.
        labels_worth_tokens: How many tell as much as its labels do; None: as many as the least.
    """

    idf_F: npt.NDArray[np.float16]
    weight_NF: npt.NDArray[np.float16]
    mean_N: npt.NDArray[np.float64]
    worth_tokens: float
    least_worth_tokens: float
    labels_worth_tokens: float | None = None
    _rare_F: npt.NDArray[np.float32] = field(init=False, repr=False)
    _weight_FN: npt.NDArray[np.float32] = field(init=False, repr=False)

    @property
    def num_nodes(self) -> int:
        return len(self.mean_N)

    @property
    def num_bytes(self) -> int:
        """Memory that its tables take."""
        return sum(one.nbytes for one in (self.idf_F, self.weight_NF, self._rare_F, self._weight_FN))

    def __post_init__(self) -> None:
        buckets = len(self.idf_F)
        if not buckets or self.weight_NF.shape != (len(self.mean_N), buckets):
            raise InputError(
                f"predictor: weights of shape {list(self.weight_NF.shape)} where {len(self.mean_N)} nodes and "
                f"{buckets} buckets are"
            )
        finite = all(bool(np.isfinite(one).all()) for one in (self.idf_F, self.weight_NF, self.mean_N))
        told = self.worth_tokens, self.worth_of(prompt=False, labels=True)
        if not (finite and 0 <= self.least_worth_tokens <= min(told) and max(told) < np.inf):
            raise InputError(
                f"predictor: numbers must be finite, worth_tokens={told[0]} not below least_worth_tokens="
                f"{self.least_worth_tokens}, and that 0 or more; labels_worth_tokens={self.labels_worth_tokens}"
            )
        object.__setattr__(self, "_rare_F", self.idf_F.astype(np.float32))
        object.__setattr__(self, "_weight_FN", np.ascontiguousarray(self.weight_NF.T, dtype=np.float32))

    def worth_of(self, *, prompt: bool, labels: bool) -> float:
        """How many observed tokens tell as much as what is known."""
        worth = [self.least_worth_tokens, self.worth_tokens if prompt else 0.0]
        return max(*worth, (self.labels_worth_tokens or 0.0) if labels else 0.0)

    def saved(self, prompt: object = None, labels: Mapping[str, str] | None = None) -> npt.NDArray[np.float64]:
        """What each home is expected to save, float64 [N].

        Args:
            prompt: The ids of the prompt's tokens; None: not known.
            labels: Labels of the request by name, such as {"domain": "code"}.

        Raises:
            InputError: The prompt holds something else than ids.
        """
        saved_N = self.mean_N.copy()
        known = [] if prompt is None else [prompt_features(checked_prompt(prompt), self._rare_F)]
        known += [label_features(labels, len(self.idf_F))] if labels else []
        for column, value in known:
            saved_N += weighed(column, value, self._weight_FN)
        return saved_N
