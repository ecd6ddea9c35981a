"""Capacity on every policy is that of one process that sees all tokens, ties included."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moe import Tokens, make_matrices, make_placement, make_tokens, run_experts, torch

from placement import Placement, open_trace
from placement.analysis.advise.capacity_factor import FACTORS, IN_ORDER, capacity
from placement.errors import OptionError, RankError
from placement.runtime import CapacityPolicy, Dispatcher, LayerMap, Lockstep, Mesh, MoELayer, entropy_load
from placement.runtime.admission import admit, admit_on_device
from placement.runtime.decision import RankCapacity
from placement.runtime.hash64_torch import mix as torch_mix
from placement.support.hash64 import mix

EXPERTS, TOP_K, SLOTS = 10, 3, 3
SHAPE = (2, 2)
PLACEMENT = make_placement(*SHAPE, SLOTS, EXPERTS, TOP_K)
PLACEMENTS = [
    make_placement(1, 2, 6, EXPERTS, TOP_K),
    make_placement(2, 1, 5, EXPERTS, TOP_K),
    PLACEMENT,
    make_placement(4, 2, 3, EXPERTS, TOP_K),
]
Kept = set[tuple[int, int, int]]  # (rank, row, slot)


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


def decided(
    policy: CapacityPolicy,
    tokens: list[Tokens],
    priorities: list[Any],
    loads: list[Any],
    placement: Placement = PLACEMENT,
) -> tuple[Kept, list[Any]]:
    """What the runtime keeps, and the slots that had been chosen."""
    layer_map = LayerMap.of(placement, 0)

    def program(mesh: Mesh) -> tuple[Any, Any]:
        mine = tokens[mesh.rank]
        slots = Dispatcher(mesh, layer_map).choose(mine.ids)
        decision = RankCapacity(policy, layer_map, mesh.world).decide(
            mine.ids, slots, mine.weights, mine.scores, priority=priorities[mesh.rank], load=loads[mesh.rank]
        )
        assert int(decision.dropped) == int((decision.slots[:, :TOP_K] < 0).sum())
        assert int(decision.extra) == int((decision.slots[:, TOP_K:] >= 0).sum())
        assert ((decision.weights != 0) <= (decision.slots >= 0)).all()
        return decision.slots, slots

    kept: Kept = set()
    results = Lockstep(placement.num_nodes, placement.gpus_per_node).run(program)
    for rank, (left, _) in enumerate(results):
        kept |= {(rank, row, slot) for row, slots in enumerate(left.tolist()) for slot in slots if slot >= 0}
    return kept, [slots for _, slots in results]


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


def test_random_is_even_and_repeatable() -> None:
    """Drawn by seed, step, rank and row: another seed or step draws others; ranks and rows fare alike."""
    tokens = make_tokens([200] * 4, EXPERTS, TOP_K, seed=1, hot=True)
    ones = [torch.ones(200) for _ in tokens]

    def kept(seed: int) -> Kept:
        policy = CapacityPolicy(mode="drop", keep="random", gamma=0.5, seed=seed)
        return decided(policy, tokens, [one.long() for one in ones], ones)[0]

    first = kept(0)
    assert kept(0) == first
    assert kept(1) != first
    by_rank = np.bincount([rank for rank, _, _ in first], minlength=4)
    early = sum(row < 100 for _, row, _ in first) / len(first)
    assert by_rank.max() < 1.3 * by_rank.min()
    assert 0.42 < early < 0.58
    words = np.arange(1000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert (torch_mix(torch.from_numpy(words.view(np.int64))).numpy().view(np.uint64) == mix(words)).all()


def test_images_go_before_text() -> None:
    """With one hot expert, no image token is kept while a text token is dropped there."""
    tokens = make_tokens([20] * 4, EXPERTS, TOP_K, hot=True)
    text = [torch.arange(20) % 2 for _ in tokens]
    kept, slots = decided(CapacityPolicy(mode="drop", gamma=1.0), tokens, text, [torch.ones(20)] * 4)
    hot = {p for p in range(PLACEMENT.num_slots) if PLACEMENT.phy2log_LP[0, p] == 0}
    asked = {(r, t, p) for r in range(4) for t in range(20) for p in slots[r][t].tolist() if p in hot}
    for slot in hot:
        lost_text = any(t % 2 and p == slot for _, t, p in asked - kept)
        kept_image = any(not t % 2 and p == slot for _, t, p in kept & asked)
        assert not (lost_text and kept_image)
    assert asked - kept


def test_capacity_follows_what_a_batch_is_made_of() -> None:
    """One hot expert, 30 of 40 tokens of image: with classes it takes so many of each as its share of the capacity."""
    tokens = make_tokens([10] * 4, EXPERTS, TOP_K, hot=True)
    placement = make_placement(4, 1, 3, EXPERTS + 2, TOP_K)
    text = [(torch.arange(10) >= 7.5).long() if rank % 2 else (torch.arange(10) >= 7).long() for rank in range(4)]
    ones = [torch.ones(10)] * 4
    hot = next(p for p in range(12) if placement.phy2log_LP[0, p] == 0)

    def served(classes: dict[int, float] | None) -> list[int]:
        policy = CapacityPolicy(mode="drop", gamma=2.0, classes=classes)
        kept, _ = decided(policy, tokens, text, ones, placement)
        return np.bincount([int(text[r][t]) for r, t, slot in kept if slot == hot], minlength=2).tolist()

    assert served(None) == [10, 10]  # C = ceil(2 * 40 * 3 / 12 experts) = 20: all text, then images
    assert served({0: 1.0, 1: 1.0}) == [15, 5]  # each its own share
    assert served({0: 0.5}) == [8, 5]
    assert served({0: 0.5, 1: 2.0}) == [8, 10]


def test_decode_steps_are_limited() -> None:
    """One token a rank, all to one expert: C = ceil(4 * 3 / 10 experts) = 2, in each of its slots."""
    tokens = make_tokens([1] * 4, EXPERTS, TOP_K, hot=True)
    kept, slots = decided(CapacityPolicy(mode="drop", gamma=1.0), tokens, [torch.zeros(1)] * 4, [torch.ones(1)] * 4)
    served = np.bincount([slot for _, _, slot in kept], minlength=12)
    assert served.max() == 2
    wanted = np.bincount(torch.cat(slots).flatten().numpy(), minlength=12)
    assert (served == np.minimum(wanted, 2)).all()


def test_spared_tokens_are_not_limited() -> None:
    """Ranks 0 and 2 bring tokens of decode: all of them are kept, without further experts, and C is that of the others.
    A step with fewer tokens than `min_tokens` is not limited; nor is one that is spared as a whole."""
    tokens = make_tokens([6, 9, 1, 8], EXPERTS, TOP_K, hot=True)
    layer_map = LayerMap.of(PLACEMENT, 0)

    def program(mesh: Mesh, policy: CapacityPolicy, spared: tuple[int, ...]) -> Any:
        mine = tokens[mesh.rank]
        slots = Dispatcher(mesh, layer_map).choose(mine.ids)
        decide = RankCapacity(policy, layer_map, mesh.world).decide
        decision = decide(mine.ids, slots, mine.weights, mine.scores, spared=mesh.rank in spared)
        return decision.slots, slots

    for mode, scope in (("drop", "global"), ("expanded", "global"), ("drop", "source")):
        policy = CapacityPolicy(mode=mode, scope=scope, gamma=1.0)
        results = Lockstep(*SHAPE).run(lambda mesh, policy=policy: program(mesh, policy, (0, 2)))
        for rank in (0, 2):
            left, wanted = results[rank]
            assert torch.equal(left[:, :TOP_K], wanted)
            assert (left[:, TOP_K:] < 0).all()
        served = np.bincount(torch.cat([left[left >= 0] for left, _ in (results[1], results[3])]), minlength=12)
        assert served.max() == 6  # C = ceil(17 * 3 / 10); of each source ceil(2.7) and ceil(2.4)
        for way, spared in ((policy, (0, 1, 2, 3)), (replace(policy, min_tokens=25), ())):
            for left, wanted in Lockstep(*SHAPE).run(lambda mesh, w=way, s=spared: program(mesh, w, s)):
                assert torch.equal(left[:, :TOP_K], wanted)
                assert (left[:, TOP_K:] < 0).all()
        limited = Lockstep(*SHAPE).run(lambda mesh, p=policy: program(mesh, replace(p, min_tokens=5), ()))
        assert any(bool((left[:, :TOP_K] != wanted).any()) for left, wanted in limited)


def test_entropy_load() -> None:
    """Text counts 1, an even distribution 1, a certain one 0."""
    chance = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]])
    assert entropy_load(chance, torch.tensor([True, False, False])).tolist() == pytest.approx([1, 1, 0], abs=1e-6)


def test_faults_in_the_decision_are_told_to_all() -> None:
    """NaN among the scores or loads of one rank, and policies that differ, before any token moves."""
    tokens = make_tokens([5] * 4, EXPERTS, TOP_K)
    layer_map = LayerMap.of(PLACEMENT, 0)

    def program(mesh: Mesh, poison: str, gammas: list[float]) -> None:
        mine = tokens[mesh.rank]
        scores = mine.scores.clone()
        load = torch.ones(5)
        if mesh.rank == 2 and poison:
            (scores if poison == "scores" else load).view(-1)[3] = float("nan")
        policy = CapacityPolicy(mode="drop", gamma=gammas[mesh.rank])
        MoELayer(Dispatcher(mesh, layer_map, hops="hierarchical"), lambda rows, counts: rows, policy)(
            mine.x, mine.ids, mine.weights, scores, load=load
        )

    for poison, gammas, words in (
        ("loads", [1.0] * 4, "rank 2 has weights or scores that are not finite numbers, or loads"),
        ("scores", [1.0] * 4, "rank 2 has weights or scores that are not finite"),
        ("", [1.0, 1.0, 1.0, 2.0], "rank 3 has tokens of another size, type, top-k or capacity policy"),
    ):
        outcomes = Lockstep(*SHAPE).try_run(lambda mesh, p=poison, g=gammas: program(mesh, p, g))
        assert all(isinstance(one, RankError) and words in str(one) for one in outcomes), outcomes


def test_bad_policies() -> None:
    """Told in one line."""
    for kwargs, words in (
        ({"mode": "some"}, "mode='some' is unknown; choose one of none, drop, expanded"),
        ({"gamma": 0.0}, "gamma=0.0 must be a positive number"),
        ({"gamma": {0: float("nan")}}, "gamma=nan must be a positive number"),
        ({"classes": {1: 0.0}}, "classes has 1: 0.0; priorities from 0 to 65535 and positive factors"),
        ({"classes": {1 << 16: 1.0}}, "classes has 65536: 1.0; priorities"),
        ({"max_extra": -1}, "max_extra=-1 must be 0 or more"),
    ):
        with pytest.raises(OptionError, match=words):
            CapacityPolicy(**kwargs)
    with pytest.raises(OptionError, match=r"gamma has no value for layer 3; it has layers \[0\]"):
        CapacityPolicy(gamma={0: 1.0}).gamma_of(3)


def test_gamma_by_layer() -> None:
    """Each layer keeps to its own."""
    placement: Placement = make_placement(*SHAPE, SLOTS, EXPERTS, TOP_K, layers=2)
    policy = CapacityPolicy(mode="drop", gamma={0: 0.5, 1: 50.0})
    tokens = make_tokens([20] * 4, EXPERTS, TOP_K, hot=True)

    def program(mesh: Mesh) -> list[int]:
        mine = tokens[mesh.rank]
        return [
            int(
                MoELayer(Dispatcher(mesh, LayerMap.of(placement, layer)), lambda rows, counts: rows, policy)(
                    mine.x, mine.ids, mine.weights
                )[1].dropped
            )
            for layer in (0, 1)
        ]

    dropped = np.array(Lockstep(*SHAPE).run(program))
    assert dropped[:, 0].sum() > 0
    assert dropped[:, 1].sum() == 0


def test_factors_of_advise_drop_what_it_says(tmp_path: Path, write_trace: Any) -> None:
    """Of each layer, when the trace is served in its steps: the advised share, less what rounding C up saves; with
    redundant experts, where the same factor gives the same C, no more."""
    shape = {"num_layers": 2, "num_experts": EXPERTS, "top_k": TOP_K, "tokens": 240, "spread": 2.0}
    written, step = write_trace(tmp_path / "t", **shape), 60
    found = capacity(open_trace(written.folder), step_tokens=step, most_dropped=0.05)
    policy = CapacityPolicy(mode="drop", keep="first", gamma=found.gamma(IN_ORDER))
    ids_LSGTK = torch.from_numpy(written.ids_LTK.astype(np.int64)).view(2, -1, 2, step // 2, TOP_K)

    def program(mesh: Mesh, layer_map: LayerMap, ids_SGTK: Any) -> int:
        choose, dropped = Dispatcher(mesh, layer_map).choose, 0
        decide = RankCapacity(policy, layer_map, mesh.world).decide
        for ids in ids_SGTK[:, mesh.rank]:
            dropped += int(decide(ids, choose(ids), torch.ones(ids.shape), None).dropped)
        return dropped

    for index, layer in enumerate(found.layers):
        told = layer.by[IN_ORDER].dropped[FACTORS.index(policy.gamma_of(index))]
        shares = []
        for slots in (5, 6):
            layer_map = LayerMap.of(make_placement(1, 2, slots, EXPERTS, TOP_K, layers=2), index)
            lost = Lockstep(1, 2).run(lambda mesh, m=layer_map, i=index: program(mesh, m, ids_LSGTK[i]))
            shares.append(sum(lost) / ids_LSGTK[index].numel())
        assert 0 < shares[0] <= told + 1e-6 < shares[0] + EXPERTS / (step * TOP_K)
        assert shares[1] <= shares[0]
