"""No reader runs what a file asks for: files that would create another one when unpickled are refused."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from placement.errors import TraceError
from placement.readers.base import ReadOptions
from placement.readers.convert import convert


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def pt_file(path: Path, trap: Trap) -> None:
    slots = torch.arange(4).repeat(2, 1)
    torch.save({"records": [trap], "last_physical_to_logical_map": slots}, path)


def old_pt_file(path: Path, trap: Trap) -> None:
    torch.save({"logical_count": trap}, path, _use_new_zipfile_serialization=False)


def npy_file(path: Path, trap: Trap) -> None:
    np.save(path, np.array([[[trap]]], dtype=object), allow_pickle=True)


def npz_file(path: Path, trap: Trap) -> None:
    np.savez(path, expert_ids=np.array([[[trap]]], dtype=object))


def npz_column(path: Path, trap: Trap) -> None:
    ids = np.argsort(np.random.default_rng(0).random((6, 2, 4)), axis=2)[:, :, :2]
    np.savez(path, expert_ids=ids, request=np.array([trap] * 6, dtype=object))


def pickled_npz(path: Path, trap: Trap) -> None:
    import pickle

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("expert_ids.npy", pickle.dumps(trap))


@pytest.mark.parametrize("reader", ["auto", "named"])
@pytest.mark.parametrize(
    ("write", "name", "reader_name"),
    [
        (pt_file, "x.pt", "sglang"),
        (old_pt_file, "x.pt", "sglang"),
        (npy_file, "x.npy", "arrays"),
        (npy_file, "x.npy", "vllm"),
        (npz_file, "x.npz", "arrays"),
        (npz_column, "x.npz", "arrays"),
        (pickled_npz, "x.npz", "arrays"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_nothing_is_unpickled(write: Any, name: str, reader_name: str, reader: str, tmp_path: Path) -> None:
    """Refused in one line, and the folder that the file would have made is not there; nor is any output."""
    target = tmp_path / "made"
    write(tmp_path / name, Trap(target))
    with pytest.raises(TraceError) as refused:
        convert(tmp_path / name, tmp_path / "out", reader="auto" if reader == "auto" else reader_name)
    assert not target.exists()
    assert not (tmp_path / "out").exists()
    assert "\n" not in str(refused.value) and name in str(refused.value)


def test_the_trap_works(tmp_path: Path) -> None:
    """The file of the test above does run code where it is unpickled; else that test could not fail."""
    write = tmp_path / "x.pt"
    pt_file(write, Trap(tmp_path / "made"))
    torch.load(write, weights_only=False)
    assert (tmp_path / "made").exists()


def test_numpy_scalars_in_a_dump_are_refused_in_words(tmp_path: Path) -> None:
    """A dump that somebody saved with NumPy values asks for NumPy's unpickling, which is refused and explained."""
    torch.save({"logical_count": torch.ones((1, 2, 4), dtype=torch.int32), "rank": np.int64(0)}, tmp_path / "x.pt")
    with pytest.raises(TraceError, match=r"refused.*numpy"):
        convert(tmp_path / "x.pt", tmp_path / "out.npz", options=ReadOptions(top_k=2))


def test_a_tensor_outside_of_the_file_is_refused(tmp_path: Path) -> None:
    """Places of tensors are checked against the zip directory: a file with compressed tensors is not misread."""
    torch.save({"logical_count": torch.ones((3, 2, 4), dtype=torch.int32)}, tmp_path / "x.pt")
    buffer = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "x.pt") as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            new.writestr(member, old.read(member))
    (tmp_path / "x.pt").write_bytes(buffer.getvalue())
    with pytest.raises(TraceError, match=r"x\.pt"):
        convert(tmp_path / "x.pt", tmp_path / "out.npz", reader="sglang", options=ReadOptions(top_k=2))
