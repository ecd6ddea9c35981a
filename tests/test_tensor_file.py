"""Tensors on disk are, byte for byte, what the safetensors library writes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save

from placement.errors import OutputError
from placement.support.tensor_file import DTYPES, Header, read_header, write_tensors

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


def a_file(tmp_path: Path) -> bytes:
    write_tensors(tmp_path / "t", {"ids": np.arange(6, dtype=np.uint16).reshape(2, 3), "x": np.zeros(4, np.uint8)})
    return (tmp_path / "t").read_bytes()


def header_of(content: bytes) -> Header:
    return read_header(lambda start, stop: content[start:stop], len(content))


def test_a_header_is_read_back(tmp_path: Path) -> None:
    """Names, types, shapes and places of the tensors; a header longer than the first piece is read whole."""
    content = a_file(tmp_path)
    header = header_of(content)
    assert [(one.name, one.dtype, one.shape) for one in header.tensors] == [("ids", "U16", (2, 3)), ("x", "U8", (4,))]
    (ids, _) = header.tensors
    assert content[header.data_begin + ids.begin :][: ids.num_bytes] == np.arange(6, dtype="<u2").tobytes()
    many = {f"{number:040}": np.zeros(1, np.uint8) for number in range(200)}
    write_tensors(tmp_path / "many", many)
    assert len(header_of((tmp_path / "many").read_bytes()).tensors) == 200


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda content: content[:-1], "has .* bytes where its header needs"),
        (lambda content: content + b"\0", "has .* bytes where its header needs"),
        (lambda content: content[:5], "is not a safetensors file"),
        (lambda content: b"\xff" * 8 + content[8:], "is not a safetensors file"),
        (lambda content: content.replace(b"[2,3]", b"[2,4]"), "damaged header at tensor ids"),
        (lambda content: content.replace(b"[0,12]", b"[1,12]"), "damaged header at tensor ids"),
        (lambda content: content.replace(b'"x"', b'"\xff"'), "damaged header"),
    ],
)
def test_a_file_that_is_none_is_refused(change: Callable[[bytes], bytes], told: str, tmp_path: Path) -> None:
    """A file that is cut off or too long, and a header whose tensors are not where their shapes say."""
    with pytest.raises(ValueError, match=told):
        header_of(change(a_file(tmp_path)))
