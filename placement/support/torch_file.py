"""Files of `torch.save`, read without torch and without unpickling; tensors stay on disk until they are asked for.

Such a file is a zip: `data.pkl`, the document as a program for pickle's machine, and each tensor's values as they are.
The few instructions that plain data need are followed here; nothing that a file names is imported or called, except
that `torch._utils._rebuild_tensor_v2`, whose arguments say where a tensor lies, is understood.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from placement.support.array_files import open_zip

KINDS = {
    "torch CharStorage": "int8",
    "torch ByteStorage": "uint8",
    "torch ShortStorage": "int16",
    "torch IntStorage": "int32",
    "torch LongStorage": "int64",
    "torch HalfStorage": "float16",
    "torch FloatStorage": "float32",
    "torch DoubleStorage": "float64",
    "torch BoolStorage": "bool",
}
TENSOR, ORDERED, SIZE = "torch._utils _rebuild_tensor_v2", "collections OrderedDict", "torch Size"
LOCAL_HEADER, NAME_LENGTHS = 30, 26
MOST_EMPTY = 1 << 20  # an axis of a tensor without values: it takes no bytes, but time
LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor on disk.

    shape         length of each axis
    stride        values from one entry of an axis to the next
    offset_bytes  where the first value is in the file
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: np.dtype[Any]
    offset_bytes: int

    def read(self, file: IO[bytes]) -> npt.NDArray[Any]:
        """The whole tensor. Raises ValueError on a truncated file."""
        if self._is_in_order():
            return self._values(file, 0, math.prod(self.shape)).reshape(self.shape)
        reach = 1 + sum((length - 1) * step for length, step in zip(self.shape, self.stride, strict=True))
        step_bytes = [step * self.dtype.itemsize for step in self.stride]
        return np.array(as_strided(self._values(file, 0, reach), self.shape, step_bytes))

    def part(self, file: IO[bytes], start: int, count: int) -> npt.NDArray[Any]:
        """`count` values from value `start` on. Raises ValueError on a truncated file and on a view of a tensor."""
        if not self._is_in_order():
            raise ValueError("it has a tensor that is a view of another; save tensor.contiguous()")
        return self._values(file, start, count)

    def _values(self, file: IO[bytes], start: int, count: int) -> npt.NDArray[Any]:
        file.seek(self.offset_bytes + start * self.dtype.itemsize)
        content = file.read(count * self.dtype.itemsize)
        if len(content) < count * self.dtype.itemsize:
            raise ValueError("truncated: a tensor is not all there")
        return np.frombuffer(content, self.dtype)

    def _is_in_order(self) -> bool:
        """Rows first, no gaps."""
        step = 1
        for length, given in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if length > 1 and given != step and 0 not in self.shape:
                return False
            step *= length
        return True


@dataclass(frozen=True, slots=True)
class _Name:
    """Something that the file names: `module attribute`."""

    text: str


@dataclass(frozen=True, slots=True)
class _Storage:
    """Values of a tensor, or of several: their type, where they lie and how many there are."""

    dtype: np.dtype[Any]
    offset_bytes: int
    count: int


def open_document(file: IO[bytes]) -> Any:
    """What `torch.save` saved, tensors as StoredTensor and lists of whole numbers as int64 arrays.

    Raises ValueError on all that may be wrong with the file; never calls what a file names.
    """
    with open_zip(file) as archive:
        names = [one for one in archive.namelist() if one.endswith("/data.pkl")]
        if not names:
            raise ValueError("it is no file of torch.save: it has no data.pkl")
        folder = names[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("its numbers are big-endian")
        program = archive.read(names[0])
        try:
            return _compact(_Machine(folder, archive, file).run(program), {})
        except (IndexError, AttributeError, KeyError, TypeError, OverflowError, RecursionError, MemoryError) as error:
            raise ValueError(f"its document is damaged ({error})") from None


class _Machine:
    """Pickle's machine, as far as plain data need it."""

    def __init__(self, folder: str, archive: zipfile.ZipFile, file: IO[bytes]) -> None:
        self.folder, self.archive, self.file = folder, archive, file
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # what was on the stack when a MARK was set
        self.memo: dict[int, Any] = {}

    def run(self, program: bytes) -> Any:
        argument: Any
        for opcode, argument, _ in pickletools.genops(io.BytesIO(program)):
            name = opcode.name
            if name in LITERALS:
                self.stack.append(argument)
            elif name in ("BINPUT", "LONG_BINPUT"):
                self.memo[argument] = self.stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                self.stack.append(self.memo[argument])
            elif name in CONSTANTS:
                self.stack.append(CONSTANTS[name])
            elif name == "STOP":
                return self.stack.pop()
            else:
                self._follow(name, argument)
        raise ValueError("its document has no end")

    def _follow(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name == "MARK":
            self.below.append(stack)
            self.stack = []
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "TUPLE":
            items = self._marked()
            self.stack.append(tuple(items))
        elif name in TUPLES:
            stack[-TUPLES[name] :] = [tuple(stack[-TUPLES[name] :])]
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self._marked()
            self._last(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._marked()
            self._last(dict).update(zip(items[::2], items[1::2], strict=True))
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            stack.append(self._named(argument if name == "GLOBAL" else " ".join([stack.pop(-2), stack.pop()])))
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(self._made(stack.pop(), arguments))
        elif name not in ("PROTO", "FRAME"):
            raise self._refused(f"instruction {name}")

    def _marked(self) -> list[Any]:
        """What was put on the stack since the last MARK."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def _last(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise ValueError("its document is damaged")
        return self.stack[-1]

    def _named(self, text: str) -> _Name:
        if text not in (*KINDS, TENSOR, ORDERED, SIZE):
            if re.fullmatch(r"torch \w+Storage", text):
                raise ValueError(f"it has a tensor in {text}; {', '.join(KINDS.values())} are read")
            raise self._refused(text)
        return _Name(text)

    def _made(self, what: Any, arguments: tuple[Any, ...]) -> Any:
        if what == _Name(TENSOR):
            return self._tensor(*arguments[:4])
        if what == _Name(ORDERED):
            return dict(*arguments)
        if what == _Name(SIZE):
            return tuple(*arguments)
        raise self._refused(getattr(what, "text", type(what).__name__))

    def _storage(self, said: tuple[Any, ...]) -> _Storage:
        _, kind, key, _, count = said
        if not isinstance(kind, _Name) or kind.text not in KINDS:
            raise ValueError("a tensor does not say its type")
        dtype, member = np.dtype(KINDS[kind.text]), self.archive.getinfo(f"{self.folder}data/{key}")
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError("its tensors are compressed")
        if type(count) is not int or not 0 <= count * dtype.itemsize <= member.file_size:
            raise ValueError("a tensor is larger than its values")
        self.file.seek(member.header_offset + NAME_LENGTHS)
        name, extra = struct.unpack("<HH", self.file.read(4))
        return _Storage(dtype, member.header_offset + LOCAL_HEADER + name + extra, count)

    def _tensor(self, storage: _Storage, start: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> StoredTensor:
        values: int = math.prod(shape)
        if min((start, *shape)) < 0 or start + values > storage.count:
            raise ValueError("a tensor is larger than its values")
        if not math.prod(shape) and max(shape) > MOST_EMPTY:
            raise ValueError(f"it has a tensor of shape {list(shape)}, which cannot be")
        reach = sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
        if values and (min(stride, default=0) < 0 or start + reach >= storage.count):
            raise ValueError("a tensor is larger than its values")
        offset_bytes = storage.offset_bytes + start * storage.dtype.itemsize
        return StoredTensor(shape=tuple(shape), stride=tuple(stride), dtype=storage.dtype, offset_bytes=offset_bytes)

    def _refused(self, what: str) -> ValueError:
        return ValueError(f"it asks to run code when loaded, which is refused ({what[:160]})")


def _compact(one: Any, done: dict[int, Any]) -> Any:
    """Lists of whole numbers as arrays, a fifth of the memory; `done` knows by id what is in the document twice."""
    if not isinstance(one, dict | list | tuple):
        return one
    if id(one) not in done:
        if isinstance(one, dict):
            done[id(one)] = one
            one.update({key: _compact(value, done) for key, value in one.items()})
        else:
            whole = one and all(type(inner) is int for inner in one)
            done[id(one)] = np.array(one, dtype=np.int64) if whole else [_compact(inner, done) for inner in one]
    return done[id(one)]


def mentions(path: Path, *keys: str) -> bool:
    """True if a torch file's document has texts that are these keys; it is searched, not loaded."""
    try:
        with open_zip(path) as archive:
            name = next((one for one in archive.namelist() if one.endswith("/data.pkl")), None)
            if name is None:
                return False
            # a text stands behind its length, in four bytes or one, so that no part of a longer text matches
            left = {
                (struct.pack("<I", len(key)) + key.encode(), struct.pack("<BB", 0x8C, len(key)) + key.encode())
                for key in keys
            }
            tail = b""
            with archive.open(name) as file:
                while left and (chunk := file.read(1 << 20)):
                    left = {forms for forms in left if not any(form in tail + chunk for form in forms)}
                    tail = chunk[-64:]
            return not left
    except (OSError, ValueError):
        return False
