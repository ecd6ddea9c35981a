"""What steps cost under a uniform router, on a map that spreads the experts perfectly: by seeded simulation.

Every token draws K of the E experts, all sets alike; every rank holds as many experts, and is as fast as the others.
Loads are then uneven by chance alone: no map is more even in a step of that size. What such a router sends is no floor,
for a map may keep tokens of a real router at home.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.core.model import Model
from placement.cost.steps.figures import Column, StepFigures, StepsSoFar, columns_of
from placement.cost.steps.kernel_steps import COLUMNS, cost_steps
from placement.cost.transport import fare_HX
from placement.cost.transports import TRANSPORTS
from placement.support.hash64 import GOLDEN, mix_word
from placement.support.kernel import kernel

MOST_DRAWN, FEWEST_LAYERS, MOST_LAYERS = 1 << 23, 32, 4096  # assignments; layers of one step each
GATHERED = 2048  # steps that are put together of the layers that were drawn
CHUNK_TOKENS = 1 << 17


@lru_cache(maxsize=64)
def uniform_steps(model: Model, cluster: Cluster, transport: str, tokens_per_gpu: int, seed: int) -> StepFigures:
    """Figures of steps of `tokens_per_gpu` tokens for each rank; deterministic in all that is given.

    Layers of steps are drawn, as many as MOST_DRAWN assignments make; steps are gathered of them at random.
    """
    step_tokens = tokens_per_gpu * cluster.num_ranks
    layers = int(np.clip(MOST_DRAWN // (step_tokens * model.top_k), FEWEST_LAYERS, MOST_LAYERS))
    column_DC = columns_of(_layers(model, cluster, transport, step_tokens, layers, seed), cluster, tokens_per_gpu)
    picked_SL = np.random.default_rng([seed, 0x57E9]).integers(layers, size=(GATHERED, model.num_layers))
    gathered = StepsSoFar()
    gathered.add(column_DC[picked_SL].sum(axis=1), model.num_layers)
    figures = gathered.figures()
    mean_C = column_DC.mean(axis=0)  # of all that was drawn: exact
    mean_C[Column.STEP_US :] *= model.num_layers
    spreads = {
        column.name.lower(): getattr(figures, column.name.lower())._replace(mean=float(mean_C[column]))
        for column in Column
    }
    return figures._replace(**spreads, terms_us=tuple(mean_C[len(Column) :].tolist()))


def _layers(
    model: Model, cluster: Cluster, transport: str, step_tokens: int, layers: int, seed: int
) -> npt.NDArray[np.float64]:
    """What `cost_steps` writes of so many layers of a step each, float64 [D, 5]."""
    cluster = cluster.balanced()
    num_ranks, carrier = cluster.num_ranks, TRANSPORTS.make(transport)
    of_rank = -(-model.num_experts // num_ranks)  # where they do not divide, as if there were as many as would
    rank_E = np.repeat(np.arange(num_ranks, dtype=np.int32), of_rank)
    home_T = (np.arange(step_tokens) % num_ranks // cluster.gpus_per_node).astype(np.int32)
    figure_DC = np.empty((layers, COLUMNS))
    at_once = max(CHUNK_TOKENS // step_tokens, 1)
    for start in range(0, layers, at_once):
        rows_SC = figure_DC[start : start + at_once]
        ids_TK = np.empty((len(rows_SC) * step_tokens, model.top_k), dtype=np.int32)
        draw_sets(np.uint64(seed), start * step_tokens, len(rank_E), ids_TK)
        cost_steps(
            ids_TK,
            rank_E,
            np.tile(home_T, len(rows_SC)),
            np.array([step_tokens]),
            np.array([0, len(rows_SC)]),
            carrier.copies,
            carrier.everywhere,
            fare_HX(cluster, transport),
            np.ones(num_ranks),
            rows_SC,
        )
    return figure_DC


@kernel
def draw_sets(seed: np.uint64, first: int, num_experts: int, ids_TK: npt.NDArray[np.int32]) -> None:
    """Write K distinct ids a token, every set alike (Floyd's algorithm); the tokens have numbers from `first` on."""
    top_k = ids_TK.shape[1]
    start = mix_word(seed + GOLDEN)
    for t in range(ids_TK.shape[0]):
        word = mix_word(start + np.uint64(first + t) * GOLDEN)
        for k in range(top_k):
            last = num_experts - top_k + k
            word = mix_word(word + GOLDEN)
            drawn = np.int32((word >> np.uint64(32)) * np.uint64(last + 1) >> np.uint64(32))
            for j in range(k):
                if ids_TK[t, j] == drawn:
                    drawn = np.int32(last)
                    break
            ids_TK[t, k] = drawn
