"""A placement map is checked as a whole: all its faults are told at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement import Model, Placement
from placement.core.placement import map_faults, wasted_P
from placement.errors import InputError, MapError

MODEL = Model(name="m", layer_ids=(3, 4), num_experts=6, top_k=2)


def make(rows: Any, *, model: Model = MODEL, nodes: int = 2, gpus: int = 2, slots: int = 2) -> Placement:
    return Placement(model=model, num_nodes=nodes, gpus_per_node=gpus, slots_per_gpu=slots, phy2log_LP=np.asarray(rows))


SOUND = [[0, 1, 2, 3, 4, 5, 0, 1], [5, 4, 3, 2, 1, 0, 5, 4]]


def test_derived_views() -> None:
    """Everything else follows from the one array: ranks, copies, redundant slots."""
    placement = make(SOUND)
    assert placement.phy2log_LP.dtype == np.int32
    assert (placement.num_ranks, placement.num_slots, placement.num_redundant) == (4, 8, 2)
    assert placement.rank_of_slot_P().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert placement.copies_LE().tolist() == [[2, 2, 1, 1, 1, 1], [1, 1, 1, 1, 2, 2]]


def test_map_is_frozen() -> None:
    """A placement does not change, neither through itself nor through the array it was made of."""
    rows = np.array(SOUND)
    placement = make(rows)
    rows[0, 0] = 5
    assert placement.phy2log_LP[0, 0] == 0
    with pytest.raises(ValueError, match="read-only"):
        placement.phy2log_LP[0, 0] = 1


def test_all_faults_at_once() -> None:
    """Missing experts and ids out of range are told together, by absolute layer."""
    with pytest.raises(MapError) as caught:
        make([[0, 0, 2, 3, 4, 6, -1, 1], [5, 4, 3, 2, 5, 5, 5, 4]])
    assert set(caught.value.faults) == {
        "layer 3: slot 5 holds id 6; ids from 0 to 5 are allowed",
        "layer 3: slot 6 holds id -1; ids from 0 to 5 are allowed",
        "layer 3: experts 5 have no slot; every expert needs one",
        "layer 4: experts 0, 1 have no slot; every expert needs one",
    }
    assert "4 faults" in str(caught.value)
    assert "\n" not in str(caught.value)
    for fault in caught.value.faults:
        assert fault in str(caught.value)


def test_wasted_slots_are_all_but_the_first_of_a_rank() -> None:
    """Maps of DeepSeek's EPLB, which engines run, hold an expert several times on a GPU; elsewhere it may be again."""
    placement = make([[0, 1, 0, 2, 3, 0, 5, 4], [0, 0, 0, 1, 5, 4, 2, 3]], gpus=1, slots=4)
    assert [np.flatnonzero(row).tolist() for row in placement.wasted_LP()] == [[2], [1, 2]]
    assert make([[0, 1, 2, 3, 4, 5, 4, 0]] * 2).wasted_LP().sum() == 0


def test_very_many_faults_stay_one_line() -> None:
    """A map of nothing but faults is told in a bounded line; `faults` has them all."""
    model = Model(name="m", layer_ids=tuple(range(50)), num_experts=64, top_k=2)
    with pytest.raises(MapError) as caught:
        make(np.full((50, 64), 64), model=model, slots=16)
    assert len(caught.value.faults) >= 50 * (64 + 1)
    assert len(str(caught.value)) < 4000
    assert "more" in str(caught.value)


@pytest.mark.parametrize(
    "rows",
    [
        [row[:-1] for row in SOUND],
        [[*row, 0] for row in SOUND],
        SOUND[:1],
        [*SOUND, SOUND[0]],
        SOUND[0],
        [],
        [[], []],
        [SOUND],
        5,
    ],
)
def test_wrong_number_of_slots_or_layers(rows: Any) -> None:
    """The shape is layers x (ranks x slots), and the message says which numbers were wanted."""
    with pytest.raises(MapError, match=r"2 layers of 4 ranks x 2 slots = 8 slots are needed") as caught:
        make(rows)
    assert len(caught.value.faults) == 1


@pytest.mark.parametrize("rows", [np.array(SOUND, dtype=float), np.array(SOUND, dtype=bool)])
def test_only_whole_numbers(rows: np.ndarray) -> None:
    with pytest.raises(MapError, match="whole numbers are needed"):
        make(rows)


def test_ids_that_would_wrap_are_out_of_range() -> None:
    """An id beyond 32 bits is refused, not cut to one that looks sound."""
    rows = np.array(SOUND, dtype=np.int64)
    rows[0, 0] += 2**32
    with pytest.raises(MapError, match="slot 0 holds id 4294967296"):
        make(rows)


@given(
    rows=st.lists(st.lists(st.integers(-1, 6), min_size=8, max_size=8), min_size=2, max_size=2),
)
def test_sound_exactly_if_every_rule_holds(rows: list[list[int]]) -> None:
    """A map is accepted if and only if ids are in range and all experts are there."""
    sound = all(all(0 <= e < 6 for e in row) and set(row) == set(range(6)) for row in rows)
    faults = map_faults(np.array(rows), num_layers=2, num_experts=6, num_ranks=4, slots_per_gpu=2)
    assert (not faults) == sound


@given(st.permutations([0, 1, 2, 3, 4, 5, 0, 1]))
def test_permutations_with_two_copies(row: list[int]) -> None:
    """Any order is sound; where both copies of an expert are on one rank, the second slot is wasted."""
    again = [p + 1 for p in range(0, 8, 2) if row[p] == row[p + 1]]
    assert not map_faults(np.array([row]), num_layers=1, num_experts=6, num_ranks=4, slots_per_gpu=2)
    assert np.flatnonzero(wasted_P(np.array(row), 4)).tolist() == again


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"layer_ids": ()}, "layer_ids"),
        ({"layer_ids": (1, 1)}, "ascending"),
        ({"layer_ids": (2, 1)}, "ascending"),
        ({"layer_ids": (-1, 1)}, "non-negative"),
        ({"num_experts": 0}, "num_experts=0"),
        ({"num_experts": 65537}, "num_experts=65537"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_k": 7}, "top_k=7"),
        ({"num_groups": 4}, "num_groups=4"),
        ({"num_groups": 0}, "num_groups=0"),
    ],
)
def test_models_that_cannot_be(change: dict[str, Any], told: str) -> None:
    """A model description that no router has is refused with the field's name."""
    sound = {"name": "m", "layer_ids": (0, 1), "num_experts": 6, "top_k": 2}
    with pytest.raises(InputError, match=told):
        Model(**sound | change)
