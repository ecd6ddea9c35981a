"""The on-disk format `expert-trace/1`: `trace.json` beside `shard-00000.safetensors`, `shard-00001.safetensors`, ...

A shard holds T tokens:
    expert_ids      see below                        [L, T, K]   logical ids; layer-major: one layer is one read
    expert_weights  float16, optional                [L, T, K]   router weights of those experts
    request         int32                            [T]         index into the manifest's `requests`
    position        int32                            [T]         position in the request, prompt included
    phase           uint8                            [T]         0 prefill, 1 decode, 2 draft that was rejected
    token           int32, optional                  [T]         the model's id of the token; -1 where it is not known

Beside the shards may lie `prompts.safetensors`, see `placement/traces/prompts.py`.

The type of `expert_ids` says whether sets may be short. Unsigned (uint8 if E <= 256, else uint16): every set has K ids.
Signed (int16 if E <= 32767, else int32): a set may have fewer, even none; -1 fills its places from the end. A row
without any expert in all layers is no token and is not written. The shards of a folder may differ in this.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, model_validator

from placement.core.model import Model
from placement.documents.document import Document
from placement.errors import TraceError
from placement.support.tensor_file import DTYPES, Header, read_header, write_tensors
from placement.traces.storage.shard_reader import ShardReader
from placement.traces.storage.stored_path import StoredPath

SCHEMA = "expert-trace/1"
SHARD_TOKENS = 16_384
TOKEN_COLUMNS = {"request": "I32", "position": "I32", "phase": "U8"}
TOKEN = "token"  # the optional column: content of requests
PREFILL, DECODE, DRAFT = 0, 1, 2  # of `phase`; a draft was sent, but no token of the answer came of it


class RequestEntry(BaseModel):
    model_config = ConfigDict(extra="allow")

    id: str
    domain: str | None = None
    category: str | None = None


class TraceManifest(Document):
    """`trace.json`; unknown keys are kept. While `recording`, shards beyond `num_tokens` are not part of it yet."""

    model_config = ConfigDict(extra="allow", strict=False)
    SCHEMA = SCHEMA
    ERROR = TraceError
    MEND = "write the trace again"

    model: str
    layer_ids: list[int]
    num_experts: int
    top_k: int
    num_tokens: int
    requests: list[RequestEntry]
    num_groups: int | None = None
    num_hidden_layers: int | None = None
    recording: bool = False

    @model_validator(mode="after")
    def _check_routing(self) -> Self:
        self.routing()
        return self

    def routing(self) -> Model:
        return Model(
            name=self.model,
            layer_ids=tuple(self.layer_ids),
            num_experts=self.num_experts,
            top_k=self.top_k,
            num_groups=self.num_groups,
            num_hidden_layers=self.num_hidden_layers,
        )

    def extras(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


def read_manifest(folder: Path | StoredPath) -> TraceManifest:
    """The manifest of a trace. Raises TraceError."""
    absent = f"{folder} is not a trace: it has no trace.json; give a folder of format {SCHEMA}"
    return TraceManifest.read(folder / "trace.json", absent=absent)


def write_manifest(folder: Path, manifest: TraceManifest) -> None:
    manifest.write(folder / "trace.json")


def id_dtype(num_experts: int, *, short: bool = False) -> np.dtype[Any]:
    """The type of expert ids: unsigned, or signed where sets may be short, with -1 at the end."""
    if short:
        return np.dtype(np.int16 if num_experts <= 32_767 else np.int32)
    return np.dtype(np.uint8 if num_experts <= 256 else np.uint16)


def is_short(ids: npt.NDArray[Any] | np.dtype[Any]) -> bool:
    """True if ids of this type may be of sets with fewer than K experts."""
    dtype = ids if isinstance(ids, np.dtype) else ids.dtype
    return dtype.kind == "i"


def joined_ids(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """The parts one after another: signed as soon as one of them is. NumPy alone would take a wider type."""
    dtype = next((part.dtype for part in parts if is_short(part)), parts[0].dtype)
    return np.concatenate(parts, dtype=dtype, casting="unsafe")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One shard file whose header was checked against its manifest; data are read when asked for.

    id_dtype  signed where its sets may be short
    has_tokens  whether it says the ids of its tokens
    begins    byte of the file at which each tensor begins
    """

    path: Path | StoredPath
    num_tokens: int
    top_k: int
    id_dtype: np.dtype[Any]
    has_weights: bool
    has_tokens: bool = False
    begins: dict[str, int] = field(compare=False)

    @staticmethod
    def open(path: Path | StoredPath, model: Model) -> Shard:
        """Check names, dtypes and shapes in the header of `path`. Raises TraceError."""
        header = _header(path)
        schema = header.metadata.get("schema", SCHEMA)
        if schema != SCHEMA:
            raise TraceError(f"{path} has schema {schema!r}; {SCHEMA!r} is the one that this version reads")
        dtypes = {tensor.name: tensor.dtype for tensor in header.tensors}
        shapes = {tensor.name: list(tensor.shape) for tensor in header.tensors}
        id_types = [id_dtype(model.num_experts, short=short) for short in (False, True)]
        ids_of = {DTYPES[dtype.str[1:]]: dtype for dtype in id_types}
        columns = TOKEN_COLUMNS | ({TOKEN: "I32"} if TOKEN in dtypes else {})
        wanted = {"expert_ids": tuple(ids_of), **{name: (dtype,) for name, dtype in columns.items()}}
        for name, allowed in wanted.items():
            if name not in dtypes:
                raise TraceError(f"{path} has no tensor {name!r}; it needs {', '.join(wanted)}")
            if dtypes[name] not in allowed:
                raise TraceError(
                    f"{path}: tensor {name!r} has dtype {dtypes[name]}; {_allowed(allowed)} allowed for "
                    f"{model.num_experts} experts; write the shard again with that type"
                )
        if len(shapes["request"]) != 1:
            raise TraceError(f"{path}: tensor 'request' has shape {shapes['request']}; one value a token is allowed")
        num_tokens = shapes["request"][0]
        ids_shape = [model.num_layers, num_tokens, model.top_k]
        expected = {"expert_ids": ids_shape, **{name: [num_tokens] for name in columns}}
        if "expert_weights" in shapes:
            expected["expert_weights"] = ids_shape
        for name, shape in expected.items():
            if shapes[name] != shape:
                raise TraceError(
                    f"{path}: tensor {name!r} has shape {shapes[name]}; trace.json asks for {shape} (layers, tokens, "
                    f"top-k); mend the manifest or the shard"
                )
        return Shard(
            path=path,
            num_tokens=num_tokens,
            top_k=model.top_k,
            id_dtype=ids_of[dtypes["expert_ids"]],
            has_weights="expert_weights" in shapes,
            has_tokens=TOKEN in shapes,
            begins={tensor.name: header.data_begin + tensor.begin for tensor in header.tensors},
        )

    def stat(self) -> tuple[int, ...]:
        """What the file system says of the file: it changes whenever the content does."""
        try:
            if isinstance(self.path, StoredPath):
                return self.path.version()
            found = self.path.stat()
        except OSError as error:
            raise TraceError(f"cannot read {self.path}: {error.strerror}") from None
        return (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)

    def reader(self) -> ShardReader:
        return ShardReader(self.path, self.begins, num_tokens=self.num_tokens, top_k=self.top_k, id_dtype=self.id_dtype)

    def column(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Rows `start:stop` of a per-token column: `request`, `position`, `phase`, `token` where `has_tokens`, [T]."""
        with self.reader() as reader:
            return reader.column(name, start, self.num_tokens if stop is None else stop)

    def layer(self, name: str, layer: int, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Rows `start:stop` of one layer of `expert_ids` or `expert_weights`, [T, K]."""
        with self.reader() as reader:
            return reader.layer(name, layer, start, self.num_tokens if stop is None else stop)


def _allowed(dtypes: tuple[str, ...]) -> str:
    return f"{dtypes[0]} is the one" if len(dtypes) == 1 else f"{dtypes[0]}, or {dtypes[1]} where sets are short, is"


def _header(path: Path | StoredPath) -> Header:
    """Raises TraceError."""
    try:
        if isinstance(path, StoredPath):
            return read_header(path.read_range, path.size())
        with path.open("rb", buffering=0) as file:
            number = file.fileno()
            return read_header(lambda start, stop: os.pread(number, stop - start, start), os.fstat(number).st_size)
    except (OSError, ValueError) as error:
        told = getattr(error, "strerror", None) or f"it {error}"
        raise TraceError(f"{path} is truncated or not a safetensors file ({told}); write the shard again") from None


def write_shard(
    path: Path,
    *,
    ids_LTK: npt.NDArray[Any],
    request_T: npt.NDArray[Any],
    position_T: npt.NDArray[Any],
    phase_T: npt.NDArray[Any],
    token_T: npt.NDArray[Any] | None = None,
    weights_LTK: npt.NDArray[Any] | None = None,
) -> None:
    """Write one shard; `ids_LTK` must already have the dtype that the format asks for."""
    tensors = {
        "expert_ids": ids_LTK,
        "request": request_T.astype(np.int32, copy=False),
        "position": position_T.astype(np.int32, copy=False),
        "phase": phase_T.astype(np.uint8, copy=False),
    }
    if token_T is not None:
        tensors[TOKEN] = token_T.astype(np.int32, copy=False)
    if weights_LTK is not None:
        tensors["expert_weights"] = weights_LTK.astype(np.float16, copy=False)
    write_tensors(path, tensors, metadata={"schema": SCHEMA})
