"""Capacity on every policy is that of one process that sees all tokens, ties included."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from capacity_cases import EXPERTS, PLACEMENT, TOP_K, Kept, decided
from hypothesis import given, settings
from hypothesis import strategies as st
from moe import Tokens, make_matrices, make_placement, make_tokens, run_experts, torch

from placement import Placement
from placement.runtime import CapacityPolicy, Dispatcher, LayerMap, Lockstep, Mesh, MoELayer
from placement.runtime.admission import admit, admit_on_device

PLACEMENTS = [
    make_placement(1, 2, 6, EXPERTS, TOP_K),
    make_placement(2, 1, 5, EXPERTS, TOP_K),
    PLACEMENT,
    make_placement(4, 2, 3, EXPERTS, TOP_K),
]


def coarse(tokens: list[Tokens]) -> list[Tokens]:
    """Scores of few values, so that ties are common."""
    out = []
    for one in tokens:
        scores = (one.scores * 8).round() / 8
        out.append(replace(one, scores=scores, weights=scores.gather(1, one.ids)))
    return out


def candidates(
    policy: CapacityPolicy, tokens: list[Tokens], slots: list[Any], placement: Placement
) -> list[tuple[float, int, int, int, bool]]:
    """(score, rank, row, slot, in the top-k set) in the order that settles ties."""
    out = []
    for rank, (one, slot_TK) in enumerate(zip(tokens, slots, strict=True)):
        own = range(rank * placement.slots_per_gpu, (rank + 1) * placement.slots_per_gpu)
        for row in range(len(one.x)):
            for e, slot in zip(one.ids[row].tolist(), slot_TK[row].tolist(), strict=True):
                out.append((float(one.scores[row, e]), rank, row, slot, True))
            if policy.mode == "expanded":
                held = [(p, int(placement.phy2log_LP[0, p])) for p in own]
                free = [(p, e) for p, e in held if e not in one.ids[row].tolist()]
                best = sorted(free, key=lambda pe: -float(one.scores[row, pe[1]]))
                best = best[: len(best) if policy.max_extra is None else policy.max_extra]
                out += [(float(one.scores[row, e]), rank, row, p, False) for p, e in best]
    return out


def reference(
    policy: CapacityPolicy,
    tokens: list[Tokens],
    slots: list[Any],
    priorities: list[Any],
    loads: list[Any],
    placement: Placement = PLACEMENT,
) -> Kept:
    """One unit after the other, one candidate after the other, in plain Python."""
    scopes = [range(len(tokens))] if policy.scope == "global" else [[rank] for rank in range(len(tokens))]
    num_units = placement.num_ranks if policy.level == "device" else placement.model.num_experts
    kept: Kept = set()
    for ranks in scopes:
        classes = policy.classes or {}
        total: dict[Any, float] = defaultdict(float)
        units = defaultdict(list)
        for rank in ranks:
            for row in range(len(tokens[rank].x)):
                own = int(priorities[rank][row])
                total[own if own in classes else None] += float(loads[rank][row]) * TOP_K
        for one in candidates(policy, tokens, slots, placement):
            if one[1] in ranks:
                own = int(priorities[one[1]][one[2]])
                unit = one[3] // placement.slots_per_gpu if policy.level == "device" else one[3]
                units[unit, own if own in classes else None].append(one)
        for (_, own), wanted in units.items():
            limit = math.ceil(classes.get(own, 1.0) * policy.gamma * total[own] / num_units - 1e-9)
            order = list(reversed(wanted)) if policy.keep == "last" else wanted
            if policy.keep == "score":
                order = sorted(order, key=lambda one: -one[0])
            order = sorted(order, key=lambda one: -int(priorities[one[1]][one[2]]))
            room = float(limit)
            for _, rank, row, slot, _ in order:
                room -= float(loads[rank][row])
                if room < 0:
                    break
                kept.add((rank, row, slot))
    return kept


@settings(max_examples=120, deadline=None)
@given(
    placement=st.sampled_from(PLACEMENTS),
    sizes=st.lists(st.integers(0, 12), min_size=8, max_size=8),
    mode=st.sampled_from(["drop", "expanded"]),
    level=st.sampled_from(["expert", "device"]),
    scope=st.sampled_from(["global", "source"]),
    keep=st.sampled_from(["score", "first", "last"]),
    gamma=st.sampled_from([0.3, 1.0, 1.5, 2.0]),
    max_extra=st.sampled_from([None, 0, 1, 2]),
    classes=st.sampled_from([None, {0: 0.5}, {0: 0.75, 1: 2.0}, {1: 1.0, 7: 3.0}]),
    weighted=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_kept_are_those_of_one_process(
    placement: Placement,
    sizes: list[int],
    weighted: bool,
    seed: int,
    mode: str,
    level: str,
    scope: str,
    keep: str,
    gamma: float,
    max_extra: int | None,
    classes: dict[int, float] | None,
) -> None:
    """Every policy, with forced ties, priorities, capacities by class, uneven loads, empty ranks and a hot expert."""
    policy = CapacityPolicy(
        mode=mode, level=level, scope=scope, keep=keep, gamma=gamma, max_extra=max_extra, classes=classes
    )
    sizes = sizes[: placement.num_ranks]
    tokens = coarse(make_tokens(sizes, EXPERTS, TOP_K, seed=seed, hot=seed % 3 == 0))
    rng = np.random.default_rng(seed)
    priorities = [torch.from_numpy(rng.integers(0, 1 + weighted, size)) for size in sizes]
    loads = [torch.from_numpy(rng.choice([0.25, 0.5, 1.0], size) if weighted else np.ones(size)) for size in sizes]
    kept, slots = decided(policy, tokens, priorities, loads, placement)
    assert kept == reference(policy, tokens, slots, priorities, loads, placement)


@settings(max_examples=60, deadline=None)
@given(
    wanted=st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 3), st.integers(0, 4)), max_size=40),
    latest_first=st.booleans(),
)
def test_admission_on_a_gpu_is_that_on_a_cpu(wanted: list[tuple[int, int, int]], latest_first: bool) -> None:
    """What runs in torch on GPUs admits the same candidates, ties and loads of 0 included."""
    key, unit, load = torch.tensor(wanted, dtype=torch.int64).reshape(-1, 3).unbind(dim=1)
    limit = 3 + 2 * unit
    on_cpu = admit(key << 40, unit, load, limit, latest_first=latest_first)
    assert torch.equal(admit_on_device(key << 40, unit, load, limit, latest_first=latest_first), on_cpu)


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("hops", ["flat", "hierarchical"])
@pytest.mark.parametrize("mode", ["none", "drop", "expanded"])
@pytest.mark.parametrize("placement", PLACEMENTS, ids=["1 x 2", "2 x 1", "2 x 2", "4 x 2"])
def test_layer_output(placement: Placement, mode: str, hops: str, renormalize: bool) -> None:
    """The layer's sum is that of the experts that were kept, with the weights that the policy says; nothing is lost."""
    policy = CapacityPolicy(mode=mode, gamma=1.0, max_extra=2, renormalize=renormalize)
    tokens = make_tokens([9, 0, 14, 5, 3, 6, 0, 11][: placement.num_ranks], EXPERTS, TOP_K, seed=4)
    tokens = [replace(one, weights=one.weights * 2.5) for one in tokens]  # a router that scales its weights
    matrices, layer_map = make_matrices(EXPERTS), LayerMap.of(placement, 0)

    def program(mesh: Mesh) -> tuple[Any, Any]:
        mine = tokens[mesh.rank]
        held = [layer_map.logical_P[p] for p in layer_map.slots_of_rank(mesh.rank)]
        layer = MoELayer(
            Dispatcher(mesh, layer_map, hops=hops),
            lambda rows, counts: run_experts(rows, counts, held, matrices),
            policy,
        )
        return layer(mine.x, mine.ids, mine.weights, mine.scores)

    ones = [torch.ones(len(one.x)) for one in tokens]
    kept, slots = decided(policy, tokens, [one.long() for one in ones], ones, placement)
    if mode != "none":
        assert kept == reference(policy, tokens, slots, ones, ones, placement)
    results = Lockstep(placement.num_nodes, placement.gpus_per_node).run(program)
    assert sum(int(stats.load_P.sum()) for _, stats in results) == len(kept)
    for rank, ((y, stats), mine) in enumerate(zip(results, tokens, strict=True)):
        want = torch.zeros_like(mine.x)
        for row in range(len(mine.x)):
            held = {slot: int(placement.phy2log_LP[0, slot]) for r, t, slot in kept if (r, t) == (rank, row)}
            weight = {slot: 2.5 * float(mine.scores[row, e]) for slot, e in held.items()}
            scale = float(mine.weights[row].sum()) / sum(weight.values()) if renormalize and weight else 1.0
            for slot, e in held.items():
                want[row] += scale * weight[slot] * torch.tanh(mine.x[row] @ matrices[e])
        torch.testing.assert_close(y, want, rtol=0, atol=1e-5)
        assert stats.copies >= 0
