"""`logical_count` in every form in which SGLang takes it, by its recorder or with --init-expert-location."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placement.errors import TraceError
from placement.readers import detect
from placement.readers.base import ReadOptions
from placement.readers.convert import convert
from placement.workload.counts_file import read_counts

COUNT_SLE = np.random.default_rng(0).integers(0, 50, (3, 4, 6)) * 2
COUNT_SLE[:, 0] = 0  # layer 0 is dense


def write(path: Path, counts: Any, **more: Any) -> Path:
    """As torch saves it, or as JSON; `more` keys are read past, as SGLang does."""
    if path.suffix == ".json":
        path.write_text(json.dumps({**more, "logical_count": np.asarray(counts).tolist()}))
    else:
        torch = pytest.importorskip("torch")
        torch.save({**more, "logical_count": counts if isinstance(counts, list) else torch.from_numpy(counts)}, path)
    return path


def converted(path: Path, **options: Any) -> tuple[Any, tuple[str, ...]]:
    done = convert(path, path.parent / "counts.npz", options=ReadOptions(top_k=2, **options))
    return read_counts(path.parent / "counts.npz", None), done.notes


@pytest.mark.parametrize("suffix", [".pt", ".json"])
@pytest.mark.parametrize("dtype", ["int32", "int64", "float32", "float64", "uint8"])
@pytest.mark.parametrize("axes", [2, 3])
def test_counts_are_the_same_in_every_form(suffix: str, dtype: str, axes: int, tmp_path: Path) -> None:
    """With passes or of all passes together, whole numbers of any kind; the dense layer is left out and told."""
    counts = COUNT_SLE.astype(dtype) if axes == 3 else COUNT_SLE[1].astype(dtype)
    path = write(tmp_path / f"x{suffix}", counts, rank=0)
    assert detect(path)[0].name == "sglang"
    found, notes = converted(path)
    wanted = COUNT_SLE if axes == 3 else COUNT_SLE[1:2]
    assert found.model.layer_ids == (1, 2, 3)
    assert np.array_equal(found.count_QLE, wanted[:, 1:])
    assert any("layer 0 left out: dense" in note for note in notes)
    assert any(("one row of counts" if axes == 2 else "3 forward passes") in note for note in notes)


def test_lists_in_a_torch_file(tmp_path: Path) -> None:
    """SGLang makes a tensor of them."""
    found, _ = converted(write(tmp_path / "x.pt", COUNT_SLE.tolist()))
    assert np.array_equal(found.count_QLE, COUNT_SLE[:, 1:])


def test_means_are_rounded_and_told(tmp_path: Path) -> None:
    """A mean over passes is no whole number; how many were rounded is said."""
    means = COUNT_SLE[:1] + 1000.0
    means[0, 2, 3] += 0.25
    means[0, 3, 3] += 0.75
    found, notes = converted(write(tmp_path / "x.pt", means))
    assert np.array_equal(found.count_QLE, np.rint(means).astype(np.int64))
    assert any(note.startswith("2 counts are not whole and were rounded") for note in notes)


def test_whole_counts_are_not_called_rounded(tmp_path: Path) -> None:
    _, notes = converted(write(tmp_path / "x.json", COUNT_SLE.astype(float)))
    assert not any("rounded" in note for note in notes)


@pytest.mark.parametrize("suffix", [".pt", ".json"])
@pytest.mark.parametrize(
    ("counts", "told"),
    [
        (np.full((2, 6), 0.125), "shares, not counts"),
        (np.full((4, 6), -1), "counts -1; 0 to"),
        (np.full((4, 6), np.nan), "counts nan"),
        (np.full((4, 6), np.inf), "counts inf"),
        (np.full((6,), 3), r"\[layers, experts\] or \[passes, layers, experts\]"),
        (np.full((2, 2, 2, 2), 3), r"\[layers, experts\] or \[passes, layers, experts\]"),
        (np.zeros((3, 4, 6)), "counts nothing"),
        (np.zeros((0, 4, 6)), r"\[layers, experts\]"),
        (np.ones((4, 6), dtype=bool), r"\[layers, experts\]"),
    ],
)
def test_what_are_no_counts_is_refused(counts: Any, told: str, suffix: str, tmp_path: Path) -> None:
    """In one line; nothing is written."""
    path = write(tmp_path / f"x{suffix}", counts)
    with pytest.raises(TraceError, match=told) as refused:
        convert(path, tmp_path / "counts.npz", reader="sglang", options=ReadOptions(top_k=2))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "counts.npz").exists()


@pytest.mark.parametrize(
    "text",
    ['{"logical_count": [[1, 2], [3]]}', '{"logical_count": [["a"]]}', '{"logical_count": 7}', '{"logical_count"'],
)
def test_damaged_json_is_refused(text: str, tmp_path: Path) -> None:
    """Rows of unequal length, text, no list, a file that was cut off."""
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(TraceError) as refused:
        convert(tmp_path / "x.json", tmp_path / "counts.npz", options=ReadOptions(top_k=2))
    assert "\n" not in str(refused.value)
    assert "x.json" in str(refused.value)


def test_files_of_other_shapes_are_told(tmp_path: Path) -> None:
    """Of a folder of dumps: counts of two models do not add up."""
    write(tmp_path / "a.pt", COUNT_SLE)
    write(tmp_path / "b.pt", COUNT_SLE[:, :, :5].copy())
    with pytest.raises(TraceError, match=r"b.pt counts 4 layers of 5 experts, .*a.pt 4 of 6; convert them apart"):
        convert(tmp_path, tmp_path.parent / "counts.npz", options=ReadOptions(top_k=2))
