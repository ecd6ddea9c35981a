"""Files of `torch.save` are read without torch: torch's own reader is the reference."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.errors import TraceError
from placement.readers.sglang_file import document_of
from placement.support.torch_file import StoredTensor, open_document

GOLDEN = Path(__file__).parents[2] / "golden" / "readers" / "sglang"
DTYPES = ["int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64", "bool"]


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    whole = torch.arange(int(np.prod(shape)) + 5).to(getattr(torch, draw(st.sampled_from(DTYPES))))
    start = draw(st.integers(0, 5))  # tensors may share one storage
    one = whole[start : start + int(np.prod(shape))].reshape(shape)
    return one.permute(draw(st.permutations(range(len(shape)))))  # and be views of others


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=300)
DOCUMENTS = st.recursive(
    PLAIN | tensors(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5) | st.integers(0, 300), inner, max_size=4)
        | inner.map(lambda one: [one, one])
    ),
    max_leaves=12,
)


def same(ours: Any, theirs: Any, path: Path) -> bool:
    if isinstance(theirs, torch.Tensor):
        assert isinstance(ours, StoredTensor)
        with path.open("rb") as file:
            read = ours.read(file)
        return read.dtype == theirs.numpy().dtype and bool(np.array_equal(read, theirs.numpy()))
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key], path) for key in theirs)
    if isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(same(a, b, path) for a, b in zip(ours, theirs, strict=True))
    return bool(ours == theirs)


@settings(max_examples=100, deadline=None)
@given(document=DOCUMENTS, protocol=st.sampled_from([2, 4]))
def test_documents_are_read_as_torch_reads_them(
    document: Any, protocol: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever plain data a file holds, values and order; lists of small whole numbers come as arrays."""
    path = tmp_path_factory.mktemp("documents") / "x.pt"
    torch.save(document, path, pickle_protocol=protocol)
    try:
        with path.open("rb") as file:
            ours = open_document(file)
    except ValueError as error:
        assert "too large" in str(error) or "too big" in str(error)  # a list of numbers beyond 64 bits
        return
    assert same(ours, torch.load(path, weights_only=False), path)


def test_torch_is_not_needed() -> None:
    """The service's image has none: SGLang's dumps are read all the same."""
    command = (
        "import sys; sys.modules['torch'] = None; from pathlib import Path;"
        "from placement.support.torch_file import open_document;"
        f"print(*[open_document(path.open('rb')) for path in Path({str(GOLDEN)!r}).rglob('*.pt')])"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "StoredTensor" in done.stdout


def repeated(path: Path) -> None:
    torch.save({"a": torch.arange(4).expand(2**30, 4)}, path)


def other_type(path: Path) -> None:
    torch.save({"a": torch.ones(3, dtype=torch.bfloat16)}, path)


def no_torch_file(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/y", b"")


def program(content: bytes) -> Any:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", content)
            archive.writestr("x/data/0", bytes(8))

    return write


def tensor(start: int, shape: tuple[int, ...], count: int = 1) -> Any:
    """A file whose tensor lies where no value is."""
    buffer = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, one: Any) -> Any:
            return ("storage", torch.LongStorage, "0", "cpu", count) if one == "here" else None

    class Rebuild:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, ("here", start, shape, (1,) * len(shape), False, {})

    Pickler(buffer, protocol=2).dump({"a": Rebuild()})
    return program(buffer.getvalue())


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (repeated, "larger than its values"),
        (other_type, "BFloat16Storage"),
        (no_torch_file, "no data.pkl"),
        (program(b""), "pickle exhausted"),
        (program(b"\x80\x02("), "pickle exhausted"),
        (program(b"\x80\x02]t."), "damaged"),
        (program(b"\x80\x02K\x01K\x02a."), "damaged"),
        (program(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R."), "refused (os system)"),
        (program(b"\x80\x02}\x81."), "refused (instruction NEWOBJ)"),
        (program(b"\x80\x02]q\x00h\x00a."), "recursion"),
        (tensor(0, (2,)), "larger than its values"),
        (tensor(-1, (1,)), "larger than its values"),
        (tensor(0, (1,), count=2), "larger than its values"),
        (tensor(0, (2**40, 2**40)), "larger than its values"),
    ],
)
def test_what_is_damaged_is_refused_in_one_line(write: Any, said: str, tmp_path: Path) -> None:
    """No program of pickle's machine does more than build plain data, and no tensor lies outside of its values."""
    write(tmp_path / "x.pt")
    with pytest.raises(TraceError) as refused:
        document_of(tmp_path / "x.pt")
    assert said in str(refused.value)
    assert "x.pt" in str(refused.value)


def test_what_is_in_a_document_often_is_looked_at_once(tmp_path: Path) -> None:
    """A list of two lists that are one list, sixty deep, would take for ever."""
    deep: list[Any] = []
    for _ in range(60):
        deep = [deep, {"a": deep, "b": deep}]
    torch.save(deep, tmp_path / "x.pt")
    with (tmp_path / "x.pt").open("rb") as file:
        assert len(open_document(file)) == 2


def test_a_view_is_no_run_of_values(tmp_path: Path) -> None:
    """Records are read by parts, as their values lie: of a view these would be others."""
    torch.save({"a": torch.arange(12).reshape(3, 4).T}, tmp_path / "x.pt")
    with (tmp_path / "x.pt").open("rb") as file, pytest.raises(ValueError, match="contiguous"):
        open_document(file)["a"].part(file, 0, 4)
