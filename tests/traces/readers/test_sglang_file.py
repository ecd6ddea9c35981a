"""Dumps of SGLang's recorder as files: some without records, and files of other things beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from placement.errors import TraceError
from placement.readers import detect
from placement.readers.base import ReadOptions
from placement.readers.convert import convert
from placement.workload.counts_file import read_counts

Array = npt.NDArray[Any]
LINEAR = np.arange(6)[None].repeat(2, axis=0)


def dump(path: Path, records: Any, slots: Array = LINEAR) -> None:
    torch.save({"records": records, "last_physical_to_logical_map": torch.tensor(slots)}, path)


def tokens(seed: int, count: int) -> dict[str, Any]:
    """A pass of one prompt."""
    ids = np.argsort(np.random.default_rng(seed).random((2, count, 6)), axis=-1)[..., :2]
    return {
        "forward_pass_id": seed,
        "forward_mode": 1,
        "positions": list(range(count)),
        "extend_seq_lens": [count],
        "topk_ids_of_layer": torch.tensor(ids, dtype=torch.int32),
    }


def counts(seed: int) -> dict[str, Any]:
    count_LP = np.random.default_rng(seed).integers(0, 9, (2, 6))
    return {"forward_pass_id": seed, "global_physical_count": torch.tensor(count_LP, dtype=torch.int32)}


@pytest.mark.parametrize("empty", [[0], [0, 1], [2], [0, 2], [1, 3]])
@pytest.mark.parametrize("mode", ["per_token", "per_pass"])
def test_dumps_without_records_are_left_out(mode: str, empty: list[int], tmp_path: Path) -> None:
    """Wherever such dumps are and whatever their map: what other dumps have is read, and a note counts those."""
    folder, output = tmp_path / "dumps", tmp_path / ("out" if mode == "per_token" else "out.npz")
    folder.mkdir()
    full = [number for number in range(4) if number not in empty]
    for number in range(4):
        record = tokens(number, 5 + number) if mode == "per_token" else counts(number)
        dump(folder / f"d_{number}.pt", *([[], LINEAR[:, ::-1].copy()] if number in empty else [[record]]))
    done = convert(folder, output, options=ReadOptions(top_k=2))
    (note,) = [note for note in done.notes if "without records" in note]
    assert note.startswith(f"left out: {len(empty)} of 4 dumps") and f"d_{empty[0]}.pt" in note
    if mode == "per_token":
        assert done.num_tokens == sum(5 + number for number in full)
    else:
        sums = np.sum([counts(number)["global_physical_count"].numpy() for number in full], axis=0)
        assert np.array_equal(read_counts(output).load_LE(), sums)
    assert done.model.num_hidden_layers == 2


def test_no_records_at_all_are_refused(tmp_path: Path) -> None:
    """Only where nothing is left; the line says how to record."""
    for name in ("a", "b"):
        dump(tmp_path / f"{name}.pt", [])
    for path, told in ((tmp_path, "nor has any of 2 dumps; POST /start"), (tmp_path / "a.pt", "has no records; POST")):
        with pytest.raises(TraceError, match=told):
            convert(path, tmp_path / "out")


@pytest.mark.parametrize("records", [7, "none", [7], ["a"], {}, None])
def test_records_that_are_no_list_of_records(records: Any, tmp_path: Path) -> None:
    """They are not taken for a dump without records."""
    dump(tmp_path / "a.pt", records)
    dump(tmp_path / "b.pt", [tokens(0, 5)])
    with pytest.raises(TraceError, match=r"a\.pt: records must be a list of dicts; "):
        convert(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    "keys",
    [
        ("logical_count_of_steps",),
        ("my_logical_count",),
        ("last_physical_to_logical_map_of", "records"),
        ("last_physical_to_logical_map", "old_records"),
    ],
)
def test_files_whose_keys_only_have_a_part_of_the_name(keys: tuple[str, ...], tmp_path: Path) -> None:
    """Such a file is of another program: no reader takes it."""
    torch.save({key: torch.zeros(2, 3) for key in keys}, tmp_path / "x.pt")
    with pytest.raises(TraceError, match="of no known format"):
        detect(tmp_path)


@pytest.mark.parametrize("protocol", [2, 4])
def test_the_whole_name_is_found_in_every_pickle(protocol: int, tmp_path: Path) -> None:
    torch.save({"logical_count": torch.ones(1, 2, 3, dtype=torch.int32)}, tmp_path / "x.pt", pickle_protocol=protocol)
    assert detect(tmp_path)[0].name == "sglang"
