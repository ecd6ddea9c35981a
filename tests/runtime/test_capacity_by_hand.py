"""Which assignments a capacity keeps in steps that are worked out by hand, and faults that all ranks hear of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from capacity_cases import EXPERTS, PLACEMENT, SHAPE, TOP_K, Kept, decided
from moe import make_placement, make_tokens, torch

from placement.errors import RankError
from placement.runtime import CapacityPolicy, Dispatcher, LayerMap, Lockstep, Mesh, MoELayer, entropy_load
from placement.runtime.decision import RankCapacity
from placement.runtime.hash64_torch import mix as torch_mix
from placement.support.hash64 import mix


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
