"""Which capacity factor: the share of assignments that is dropped where no expert takes more than gamma times the mean.

    DT(gamma) = sum over experts of max(N_i - gamma * mean N, 0) / sum of N_i

(equation 11 of Capacity-Aware Inference, arXiv 2503.05066; engines round the capacity up to whole tokens.)
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.model import Model
from placement.cost.sets import set_size
from placement.errors import OptionError
from placement.support.kernel import kernel
from placement.support.parallel import run_tasks
from placement.traces.token_order import token_batches
from placement.traces.trace import Trace
from placement.workload.counts_file import ExpertCounts

FACTORS = (1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0)
WHOLE, MIXED, IN_ORDER = "trace", "mixed", "in order"
ROUNDING = 1e-12  # a share above its limit by less counts as equal to the limit

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropping:
    """peak     largest load of an expert over the mean; of steps the mean over them
    dropped  share dropped at each of FACTORS
    factor   the smallest of FACTORS that drops no more than is allowed; None: all drop more
    """

    peak: float
    dropped: tuple[float, ...]
    factor: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCapacity:
    """by: what loads are of, one of `CapacityFactors.steps`, -> figures."""

    layer_id: int
    by: dict[str, Dropping]


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityFactors:
    """factors       FACTORS, at which dropping was computed
    most_dropped  share of assignments that may be dropped
    step_tokens   tokens of a step, all GPUs together
    steps         what loads are of -> their number: `trace`, all tokens at once; steps of that many tokens, of all
                  requests `mixed` as in decode, or `in order` of the trace, one request after the other as in prefill
    overall       all layers under one factor
    """

    factors: tuple[float, ...]
    most_dropped: float
    step_tokens: int
    steps: dict[str, int]
    layers: tuple[LayerCapacity, ...]
    overall: dict[str, Dropping]

    def gamma(self, of: str) -> dict[int, float]:
        """The factor of each layer as the runtime takes it, `CapacityPolicy(gamma=...)`, by layer.

        Where all factors drop more than is allowed, a layer has the largest.

        Args:
            of: What loads are of, one of `steps`: `in order` for prompts, which is what the runtime limits.

        Raises:
            OptionError: There are no such loads.
        """
        if of not in self.steps:
            raise OptionError(f"there are no loads of {of!r}; there are those of {', '.join(self.steps)}")
        return {layer.layer_id: layer.by[of].factor or FACTORS[-1] for layer in self.layers}


def capacity(
    trace: Trace | ExpertCounts, *, step_tokens: int, most_dropped: float, executor: Executor | None = None
) -> CapacityFactors:
    """Of all kept tokens. Steps are full ones; without any (few tokens, or counts) only the whole trace is told of."""
    if isinstance(trace, ExpertCounts):
        tallies = {WHOLE: _whole(trace.load_LE())}
    else:
        mixed, in_order = (_tally_steps(trace, step_tokens, order == MIXED, executor) for order in (MIXED, IN_ORDER))
        tallies = {WHOLE: _whole(in_order.total_LE), MIXED: mixed, IN_ORDER: in_order}
    tallies = {name: tally for name, tally in tallies.items() if tally.steps}
    return CapacityFactors(
        factors=FACTORS,
        most_dropped=most_dropped,
        step_tokens=step_tokens,
        steps={name: tally.steps for name, tally in tallies.items()},
        layers=tuple(
            LayerCapacity(
                layer_id=layer_id,
                by={name: tally.dropping([layer], most_dropped) for name, tally in tallies.items()},
            )
            for layer, layer_id in enumerate(trace.model.layer_ids)
        ),
        overall={
            name: tally.dropping(list(range(trace.model.num_layers)), most_dropped) for name, tally in tallies.items()
        },
    )


@dataclass(slots=True, kw_only=True)
class _Tally:
    """Sums over `steps` steps: assignments dropped at each factor, all, and peaks; `total_LE` also of a last part."""

    steps: int
    dropped_LC: Floats
    served_L: Floats
    peak_L: Floats
    total_LE: npt.NDArray[np.int64]

    def dropping(self, layers: list[int], most_dropped: float) -> Dropping:
        served = self.served_L[layers].sum()
        dropped_C = self.dropped_LC[layers].sum(axis=0) / max(served, 1e-300)
        fits = np.flatnonzero(dropped_C <= most_dropped + ROUNDING)
        return Dropping(
            peak=round(float(self.peak_L[layers].mean()) / self.steps, 6),
            dropped=tuple(round(share, 6) for share in dropped_C.tolist()),
            factor=FACTORS[fits[0]] if len(fits) else None,
        )


def _whole(load_LE: npt.NDArray[np.int64]) -> _Tally:
    load = load_LE.astype(np.float64)
    mean_L = np.maximum(load.mean(axis=1), 1e-300)
    over_LCE = load[:, None] - np.array(FACTORS)[None, :, None] * mean_L[:, None, None]
    return _Tally(
        steps=1,
        dropped_LC=np.maximum(over_LCE, 0.0).sum(axis=2),
        served_L=load.sum(axis=1),
        peak_L=load.max(axis=1) / mean_L,
        total_LE=load_LE,
    )


def _tally_steps(trace: Trace, step_tokens: int, mixed: bool, executor: Executor | None) -> _Tally:
    model: Model = trace.model
    layers = range(model.num_layers)
    load_LE = np.zeros((model.num_layers, model.num_experts), dtype=np.int64)  # load of the step that is being filled
    sums = _Tally(
        steps=0,
        dropped_LC=np.zeros((model.num_layers, len(FACTORS))),
        served_L=np.zeros(model.num_layers),
        peak_L=np.zeros(model.num_layers),
        total_LE=np.zeros_like(load_LE),
    )
    factor_C = np.array(FACTORS)
    num_tokens = 0
    for tokens in token_batches(trace, mixed=mixed):

        def add(layer: int, ids_of: Any = tokens.ids_TK, begun: int = num_tokens % step_tokens) -> None:
            sums.peak_L[layer] += _add_steps(
                ids_of(layer),
                begun,
                step_tokens,
                factor_C,
                load_LE[layer],
                sums.dropped_LC[layer],
                sums.total_LE[layer],
            )

        run_tasks(add, layers, executor)
        num_tokens += len(tokens.request_T)
    sums.steps = num_tokens // step_tokens
    sums.served_L[:] = sums.total_LE.sum(axis=1)
    sums.total_LE += load_LE
    return sums


@kernel
def _add_steps(
    ids_TK: npt.NDArray[Any],
    begun: int,
    step_tokens: int,
    factor_C: Floats,
    load_E: npt.NDArray[np.int64],
    dropped_C: Floats,
    total_E: npt.NDArray[np.int64],
) -> float:
    """Fill steps with tokens, the first of which has `begun` already; the sum of the peaks of the full ones."""
    peaks = 0.0
    num_experts = len(load_E)
    for t in range(ids_TK.shape[0]):
        for k in range(set_size(ids_TK[t])):
            load_E[ids_TK[t, k]] += 1
        begun += 1
        if begun == step_tokens:
            begun = 0
            mean = load_E.sum() / num_experts
            peaks += load_E.max() / max(mean, 1e-300)
            for e in range(num_experts):
                for c in range(len(factor_C)):
                    over = load_E[e] - factor_C[c] * mean
                    if over > 0:
                        dropped_C[c] += over
                total_E[e] += load_E[e]
                load_E[e] = 0
    return peaks
