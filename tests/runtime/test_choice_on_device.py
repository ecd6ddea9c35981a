"""The replica choice in torch gives the slots of the one definition in `placement.cost.draw_slots`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moe import make_placement, torch

from placement.cost.choices import REPLICA_CHOICES
from placement.runtime import LayerMap, ReplicaChooser
from placement.runtime.choice_on_device import DeviceChooser
from placement.runtime.hash64_torch import mix, remainder
from placement.support.hash64 import mix as numpy_mix


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from([(1, 2, 6), (2, 2, 4), (3, 1, 6), (4, 2, 2), (8, 1, 3), (6, 2, 2)]),
    choice=st.sampled_from(["min-nodes", "local-first", "uniform"]),
    seed=st.integers(0, 10_000),
    wasted=st.booleans(),
)
def test_slots_are_the_same(shape: tuple[int, int, int], choice: str, seed: int, wasted: bool) -> None:
    """Many covers of two and three nodes, missing ids, several calls, experts twice on a rank."""
    experts, top_k = 11, 5
    layer_map = LayerMap.of(make_placement(*shape, experts, top_k, seed=seed, wasted=wasted), 0)
    rng = np.random.default_rng(seed)
    rank, rule = int(rng.integers(layer_map.num_ranks)), REPLICA_CHOICES.make(choice)
    assert rule.on_device(layer_map.num_nodes)
    ids = torch.from_numpy(np.argsort(rng.random((60, experts)), axis=1)[:, :top_k])
    ids[rng.random((60, top_k)) < 0.1] = -1
    on_device = DeviceChooser(layer_map, rank, rule, layer_map.cluster(), torch.device("cpu"))
    on_host = ReplicaChooser(layer_map, rank, choice)
    for part in ids.split([25, 0, 35]):
        assert torch.equal(on_device(part), on_host(part))


@pytest.mark.parametrize("choice", ["min-nodes", "local-first", "uniform"])
def test_another_map_in_the_same_memory(choice: str) -> None:
    """What a captured graph reads: after `use` the slots are those of a chooser made for the map, from its first token
    on, and no table has moved, whether an expert has two or three slots or all that are to spare."""
    few = make_placement(4, 2, 3, 11, 5)
    few, many = (
        replace(few, phy2log_LP=np.array([[*range(11), *further]])) for further in ([*range(11), 0, 1], [0] * 13)
    )
    first, *others = (LayerMap.of(one, 0) for one in (few, many, few))
    rule, ids = REPLICA_CHOICES.make(choice), torch.from_numpy(np.argsort(np.random.default_rng(0).random((40, 11))))
    chooser = DeviceChooser(first, 1, rule, first.cluster(), torch.device("cpu"), any_map=True)
    places = [one.data_ptr() for one in chooser._tables]
    slots = [chooser(ids[:, :5])]
    for layer_map in others:
        chooser.use(layer_map)
        slots.append(chooser(ids[:, :5]))
    assert [one.data_ptr() for one in chooser._tables] == places
    for got, layer_map in zip(slots, (first, *others), strict=True):
        assert torch.equal(got, ReplicaChooser(layer_map, 1, choice)(ids[:, :5]))
    assert not torch.equal(slots[0], slots[1])


def test_many_covers_are_seen() -> None:
    """The test above would be empty if no set ever needed two further nodes."""
    layer_map = LayerMap.of(make_placement(8, 1, 3, 11, 5, seed=3), 0)
    ids = torch.from_numpy(np.argsort(np.random.default_rng(0).random((300, 11)), axis=1)[:, :5])
    on_device = DeviceChooser(layer_map, 0, REPLICA_CHOICES.make("min-nodes"), layer_map.cluster(), torch.device("cpu"))
    nodes = on_device(ids) // 3
    assert max(len(set(row)) for row in nodes.tolist()) >= 4


def test_words_are_unsigned() -> None:
    """Hash and remainder of words with the highest bit set."""
    words = numpy_mix(np.arange(2000, dtype=np.uint64))
    as_torch = torch.from_numpy(words.view(np.int64))
    assert (mix(as_torch).numpy().view(np.uint64) == numpy_mix(words)).all()
    for by in (1, 2, 3, 7, 70):
        assert (remainder(as_torch, torch.tensor(by)).numpy() == (words % np.uint64(by)).astype(np.int64)).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    """Ids on a GPU give the slots that they give on the host, on the GPU."""
    layer_map = LayerMap.of(make_placement(4, 2, 2, 11, 5), 0)
    ids = torch.from_numpy(np.argsort(np.random.default_rng(0).random((300, 11)), axis=1)[:, :5])
    for choice in ("min-nodes", "local-first", "uniform", "min-nodes-balanced"):
        there = ReplicaChooser(layer_map, 3, choice)(ids.cuda())
        assert there.is_cuda
        assert torch.equal(there.cpu(), ReplicaChooser(layer_map, 3, choice)(ids))
