"""What converting makes of a recording: logical experts, requests followed through passes, nothing but traffic."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from converted_dumps import LINEAR, dump, ids_of, notes_of, response, sets
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.errors import TraceError
from placement.readers.base import ReadOptions
from placement.readers.convert import convert
from placement.readers.count_rows import MOST_ROWS, CountRows
from placement.readers.sglang_requests import RequestTracker
from placement.traces.trace import open_trace


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), num_passes=st.integers(1, 3), redundant=st.integers(0, 4))
def test_physical_ids_become_logical(
    seed: int, num_passes: int, redundant: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the map and whichever replica was chosen, the trace has the experts that the tokens visited."""
    rng = np.random.default_rng(seed)
    slots = np.stack([rng.permutation(np.concatenate([np.arange(6), rng.integers(0, 6, redundant)])) for _ in range(2)])
    logical = [sets(seed + number, 2, 5) for number in range(num_passes)]
    physical = []
    for ids in logical:
        found = np.zeros_like(ids)
        for place in np.ndindex(*ids.shape):
            found[place] = rng.choice(np.flatnonzero(slots[place[0]] == ids[place]))
        physical.append(found)
    folder = tmp_path_factory.mktemp("dump")
    done = convert(dump(folder / "x.pt", physical, slots), folder / "out")
    assert np.array_equal(ids_of(folder / "out"), np.concatenate(logical, axis=1))
    assert done.model.num_experts == 6 and done.num_requests == num_passes
    assert open_trace(folder / "out").model.num_hidden_layers == 2


def test_tokens_without_a_set_are_left_out(tmp_path: Path) -> None:
    """Rows that no layer wrote go; a token that lacks one layer stays; the rest is as it was."""
    ids = sets(1, 2, 9)
    ids[:, 3] = -1
    ids[0, 5] = -1
    done = convert(dump(tmp_path / "x.pt", [ids], LINEAR), tmp_path / "out")
    kept = [row for row in range(9) if row != 3]
    assert np.array_equal(ids_of(tmp_path / "out"), ids[:, kept])
    assert "1 unused rows, in x.pt" in notes_of(done)
    assert "1 of 8 tokens have fewer than 2 experts in some layer (2 places, 6.25%)" in notes_of(done)


@pytest.mark.parametrize(("tokens", "kept"), [(14, 14), (16, 0)])
def test_warm_up_batches_are_left_out(tokens: int, kept: int, tmp_path: Path) -> None:
    """Rows that repeat the one before fifteen times or more are an engine's dummies, and so are their like anywhere."""
    dummy = np.broadcast_to(np.array([[[4, 1]], [[2, 5]]]), (2, tokens, 2))
    padded = np.concatenate([sets(3, 2, 4), dummy[:, :2]], axis=1)
    done = convert(dump(tmp_path / "x.pt", [dummy, padded], LINEAR), tmp_path / "out")
    assert done.num_tokens == kept + 4 + (2 if kept else 0)
    assert (f"{tokens + 2} warm-up tokens" in notes_of(done)) == (kept == 0)


def test_dense_layers_of_one_expert_a_token(tmp_path: Path) -> None:
    """With top-1, a dense layer's zeros look like expert 0: a layer of nothing else is left out."""
    ids = np.random.default_rng(0).integers(0, 6, (30, 3, 1)).astype(np.uint8)
    ids[:, 0] = 0
    np.save(tmp_path / "x.npy", ids)
    done = convert(tmp_path / "x.npy", tmp_path / "out")
    assert done.model.layer_ids == (1, 2) and done.model.top_k == 1
    assert "layer 0 left out: dense" in notes_of(done)


def test_ranks_that_recorded_the_same_tokens(tmp_path: Path) -> None:
    """Under tensor parallelism every rank dumps the same passes: they count once."""
    folder = tmp_path / "dumps"
    folder.mkdir()
    same, other = sets(1, 2, 6), sets(2, 2, 6)
    dump(folder / "r_0.pt", [same, other], LINEAR)
    dump(folder / "r_1.pt", [same, sets(3, 2, 6)], LINEAR)
    done = convert(folder, tmp_path / "out")
    assert done.num_tokens == 18 and done.num_requests == 3


def test_dumps_of_different_maps_are_refused(tmp_path: Path) -> None:
    """The map of one file would misread the ids of another."""
    folder = tmp_path / "dumps"
    folder.mkdir()
    dump(folder / "r_0.pt", [sets(1, 2, 6)], LINEAR)
    dump(folder / "r_1.pt", [sets(2, 2, 6)], LINEAR[:, ::-1].copy())
    with pytest.raises(TraceError, match=r"r_1\.pt has another last_physical_to_logical_map"):
        convert(folder, tmp_path / "out")


def test_requests_are_followed_through_passes() -> None:
    """Prefill, decode, a request that ends, one that joins, a prompt in chunks, a cached prefix, a mixed pass."""
    tracker = RequestTracker()

    def prefill(*segments: tuple[int, int], decode: tuple[int, ...] = ()) -> list[int]:
        starts = [start for start, _ in segments] + list(decode)
        lengths = [length for _, length in segments] + [1] * len(decode)
        return tracker.follow(starts, lengths, [False] * len(segments) + [True] * len(decode))

    assert prefill((0, 5), (0, 7)) == [0, 1]
    assert prefill(decode=(5, 7)) == [0, 1]
    assert prefill((0, 8)) == [2]
    assert prefill((8, 3), (0, 4)) == [2, 3]  # the rest of 2, and another
    assert prefill((6, 2)) == [4]  # behind a cached prefix; 0 stands at 6 too, but decodes
    assert prefill(decode=(6, 11, 4, 8)) == [0, 2, 3, 4]  # 1 is done: it stood at 8, as 4 does, but before 2
    assert prefill((0, 2), decode=(7, 12, 5, 9)) == [5, 0, 2, 3, 4]
    assert prefill() == []  # an idle pass
    assert prefill(decode=(8, 6, 2)) == [0, 3, 5]
    assert prefill(decode=(40,)) == [6]  # recording began in the middle of it


MAP_DEFECTS = {
    "an expert without a slot": (
        np.array([[0, 1, 2, 3, 4, 5], [0, 1, 2, 2, 4, 5]]),
        "no slot for expert 3 of 6 in layer 1",
    ),
    "an id that no slot can hold": (np.array([[0, 1, 2, 3, 4, 6]] * 2), "has expert 6; 0 to 5 are possible in 6 slots"),
    "a negative id": (np.array([[0, 1, 2, 3, 4, -1]] * 2), "has expert -1; 0 to 5 are possible in 6 slots"),
    "numbers that are not whole": (LINEAR.astype(np.float32), "must be whole numbers"),
    "no layers": (np.arange(6), "must be whole numbers"),
    "too few layers": (LINEAR[:1], "record 0 has 2 layers"),
}


@pytest.mark.parametrize("defect", MAP_DEFECTS)
def test_defects_of_a_dump_s_map(defect: str, tmp_path: Path) -> None:
    """A map that would misread ids in silence is refused; SGLang itself checks none of it."""
    slots, match = MAP_DEFECTS[defect]
    with pytest.raises(TraceError, match=match):
        convert(dump(tmp_path / "x.pt", [sets(0, 2, 4)], slots), tmp_path / "out")


@given(st.integers(1, 1500), st.integers(0, 20))
def test_rows_of_counts_are_bounded(passes: int, seed: int) -> None:
    """However many passes there are, at most MOST_ROWS rows are held, and they add up to what was counted."""
    rows = CountRows((1, 2))
    values = np.random.default_rng(seed).integers(0, 9, (passes, 1, 2))
    for number, value in enumerate(values):
        rows.add(value.astype(np.int64), key=number)
    rows.add(np.ones((1, 2), dtype=np.int64), key=passes - 1)
    found = rows.array()
    assert len(found) <= MOST_ROWS
    assert np.array_equal(found.sum(axis=0), values.sum(axis=0) + 1)
    last = (passes - 1) // rows.width * rows.width
    assert np.array_equal(found[-1], values[last:].sum(axis=0) + 1)


def test_a_prompt_that_was_left_out_shifts_positions(tmp_path: Path) -> None:
    """`routed_experts_prompt_start` drops the first rows: positions and phases still are those of the request."""
    ids = sets(0, 6, 2).astype(np.uint8)
    (tmp_path / "x.jsonl").write_text(response(ids, prompt_tokens=8, total_tokens=11))
    convert(tmp_path / "x.jsonl", tmp_path / "out")
    block = next(open_trace(tmp_path / "out").blocks())
    assert block.column_T("position").tolist() == [4, 5, 6, 7, 8, 9]
    assert block.column_T("phase").tolist() == [0, 0, 0, 0, 1, 1]


def test_experts_that_no_token_visits_can_be_told(tmp_path: Path) -> None:
    """Without --experts the largest id is the last expert, which is said; with it nothing is guessed."""
    np.save(tmp_path / "x.npy", sets(0, 20, 2).astype(np.uint8))
    assert "largest id plus one" in notes_of(convert(tmp_path / "x.npy", tmp_path / "a"))
    done = convert(
        tmp_path / "x.npy", tmp_path / "b", options=ReadOptions(num_experts=300, layer_ids=(3, 7), model="m")
    )
    assert "largest id" not in notes_of(done)
    assert (done.model.num_experts, done.model.layer_ids, done.model.name) == (300, (3, 7), "m")
    with pytest.raises(TraceError, match=r"x\.npy: layer \d, token \d+ has expert ids .* 0 to 2 are allowed"):
        convert(tmp_path / "x.npy", tmp_path / "c", options=ReadOptions(num_experts=3))


def test_a_log_of_two_runs(tmp_path: Path) -> None:
    """A second line of type meta starts a run whose requests are others, though they have the same names."""
    lines = []
    for _ in range(2):
        lines.append({"type": "meta", "num_experts": 6})
        lines += [
            {"type": "route", "req_id": "a", "token_idx": t, "layer": layer, "topk_ids": sets(t, 1)[0].tolist()}
            for t in range(3)
            for layer in (1, 2)
        ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = convert(tmp_path / "x.jsonl", tmp_path / "out")
    assert (done.num_tokens, done.num_requests) == (6, 2)
