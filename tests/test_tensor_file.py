"""Tensors on disk are, byte for byte, what the safetensors library writes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save

from placement.errors import OutputError
from placement.support.tensor_file import DTYPES, write_tensors

ARRAYS = hnp.arrays(
    st.sampled_from([f"<{one}" for one in DTYPES]), hnp.array_shapes(min_dims=1, max_dims=3, min_side=0)
)
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda name: name != "__metadata__")


@given(st.dictionaries(NAMES, ARRAYS, max_size=5), st.none() | st.dictionaries(NAMES, NAMES, min_size=1, max_size=1))
def test_the_bytes_are_those_of_the_library(
    arrays: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]], metadata: dict[str, str] | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        write_tensors(path, arrays, metadata)
        assert path.read_bytes() == save(arrays, metadata=metadata)


def test_parts_of_arrays_are_written_in_their_own_order(tmp_path: Path) -> None:
    """Transposed, cut and big-endian arrays: the file has their values, not their memory."""
    whole = np.arange(24, dtype=np.uint16).reshape(4, 6)
    arrays = {"transposed": whole.T, "cut": whole[1:3, ::2], "big": whole.astype(">u2")}
    write_tensors(tmp_path / "x.safetensors", arrays)
    plain = {name: np.ascontiguousarray(one).astype("<u2") for name, one in arrays.items()}
    assert (tmp_path / "x.safetensors").read_bytes() == save(plain)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("placement.support.atomic_files.os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        write_tensors(tmp_path / "x.safetensors", {"x": np.zeros(3, dtype=np.uint8)})
    assert not list(tmp_path.iterdir())
