"""Rows of ids are sets: distinct ones are found and counted, whether they are full, short or empty."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from placement.cost.sets import count_assignments, distinct_sets, distinct_sets_with_homes, load_of
from placement.testing.problems import short_sets


@given(
    experts=st.sampled_from([1, 3, 4, 7, 8, 256, 300]),
    top_k=st.integers(1, 9),
    share=st.sampled_from([None, 0.0, 0.4, 0.9]),
    homes=st.integers(0, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_distinct_sets(experts: int, top_k: int, share: float | None, homes: int, seed: int) -> None:
    """Counted one by one; ids ascend in a row and -1 comes last. Few ids fit one word, many do not."""
    rng = np.random.default_rng(seed)
    ids_TK = np.argsort(rng.random((40, min(experts, 12))), axis=1)[:, :top_k] + max(experts - 12, 0)
    ids_TK = ids_TK.astype(np.uint16) if share is None else short_sets(rng, ids_TK[None], share)[0].astype(np.int16)
    home_T = rng.integers(-1, homes + 1, len(ids_TK)).astype(np.int32)
    sets_UK, home_U, count_U = distinct_sets_with_homes(ids_TK, home_T, experts)
    wanted = Counter(
        (home, frozenset(e for e in row if e >= 0)) for home, row in zip(home_T.tolist(), ids_TK.tolist(), strict=True)
    )
    found = {}
    for row, home, count in zip(sets_UK.tolist(), home_U.tolist(), count_U.tolist(), strict=True):
        members = [e for e in row if e >= 0]
        assert row == sorted(members) + [-1] * (len(row) - len(members))
        found[home, frozenset(members)] = count
    assert found == wanted and len(sets_UK) == len(wanted) and sets_UK.dtype == np.int32
    again_UK, again_U = distinct_sets(sets_UK, experts)
    assert sorted(again_UK.tolist()) == sorted({tuple(row): list(row) for row in sets_UK.tolist()}.values())
    assert again_U.sum() == len(sets_UK)


@given(share=st.sampled_from([None, 0.0, 0.4, 0.9]), seed=st.integers(0, 2**32 - 1))
def test_loads(share: float | None, seed: int) -> None:
    """How often each expert is visited, and all together; a place without an expert counts nowhere."""
    rng = np.random.default_rng(seed)
    ids_TK = np.argsort(rng.random((9, 8)), axis=1)[:, :3]
    ids_TK = ids_TK.astype(np.uint8) if share is None else short_sets(rng, ids_TK[None], share)[0].astype(np.int16)
    load = load_of(ids_TK, 10)
    assert load.tolist() == [sum(e == expert for e in ids_TK.ravel().tolist()) for expert in range(10)]
    assert count_assignments(ids_TK) == load.sum()
