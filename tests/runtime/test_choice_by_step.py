"""Ranks that tell one another their counts get the slots that `evaluate_steps` gives their tokens."""

from __future__ import annotations

import numpy as np
import pytest
from moe import dense, make_matrices, make_placement, make_tokens, run_experts, torch

from placement import Cluster
from placement.cost.choices import REPLICA_CHOICES
from placement.cost.steps.layer_in_steps import LayerInSteps
from placement.errors import RankError
from placement.runtime import Dispatcher, LayerMap, Lockstep, Mesh, MoELayer

EXPERTS, TOP_K, SHAPE, TOKENS = 12, 3, (2, 2), 20
PLACEMENT = make_placement(*SHAPE, 4, EXPERTS, TOP_K)
CHOICE = "min-nodes-step"


def test_slots_are_those_of_the_evaluation() -> None:
    """Over three steps, tokens of all ranks; the evaluation sees them in one sequence."""
    rng = np.random.default_rng(0)
    ids_SGTK = np.argsort(rng.random((3, 4, TOKENS, EXPERTS)), axis=3)[..., :TOP_K]
    layer_map = LayerMap.of(PLACEMENT, 0)

    def program(mesh: Mesh) -> list[list[list[int]]]:
        dispatcher = Dispatcher(mesh, layer_map, choice=CHOICE)
        return [dispatcher.choose(torch.from_numpy(ids_GTK[mesh.rank].copy())).tolist() for ids_GTK in ids_SGTK]

    slot_GSTK = np.array(Lockstep(*SHAPE).run(program))
    cluster = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=4)
    layer = LayerInSteps(PLACEMENT.phy2log_LP[0], EXPERTS, cluster, REPLICA_CHOICES.make(CHOICE), 1)
    rows_G = [np.flatnonzero(np.arange(12 * TOKENS) // TOKENS % 4 == rank) for rank in range(4)]
    ((_, slot_TK, _),) = layer.served(ids_SGTK.reshape(-1, TOP_K), rows_G, np.array([4 * TOKENS]))
    assert slot_GSTK.swapaxes(0, 1).reshape(-1, TOP_K).tolist() == slot_TK.tolist()


@pytest.mark.parametrize("hops", ["flat", "hierarchical"])
def test_the_sum_is_that_of_a_dense_layer(hops: str) -> None:
    """Uneven ranks, one of them without tokens."""
    tokens, matrices = make_tokens([9, 0, 14, 5], EXPERTS, TOP_K), make_matrices(EXPERTS)
    layer_map = LayerMap.of(PLACEMENT, 0)

    def program(mesh: Mesh) -> torch.Tensor:
        held = [layer_map.logical_P[p] for p in layer_map.slots_of_rank(mesh.rank)]
        dispatcher = Dispatcher(mesh, layer_map, hops=hops, choice=CHOICE)
        layer = MoELayer(dispatcher, lambda rows, counts: run_experts(rows, counts, held, matrices))
        mine = tokens[mesh.rank]
        return layer(mine.x, mine.ids, mine.weights)[0]

    for y, mine in zip(Lockstep(*SHAPE).run(program), tokens, strict=True):
        assert float((y - dense(mine, matrices)).abs().amax() if len(y) else 0) < 1e-5


def test_a_rank_with_another_map_is_named() -> None:
    """Before rows of another length are swapped, on all ranks."""
    other = LayerMap.of(make_placement(*SHAPE, 4, EXPERTS, TOP_K, seed=5), 0)
    mine = make_tokens([4] * 4, EXPERTS, TOP_K)

    def program(mesh: Mesh) -> None:
        layer_map = other if mesh.rank == 3 else LayerMap.of(PLACEMENT, 0)
        Dispatcher(mesh, layer_map, choice=CHOICE).choose(mine[mesh.rank].ids)

    for outcome in Lockstep(*SHAPE).try_run(program):
        assert isinstance(outcome, RankError)
        assert outcome.ranks == (3,) and "rank 3 uses another placement map" in str(outcome)
