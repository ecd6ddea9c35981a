"""The on-disk format `expert-trace/1`: `trace.json` beside `shard-00000.safetensors`, `shard-00001.safetensors`, ...

A shard holds T tokens:
    expert_ids      uint8 if E <= 256, else uint16   [L, T, K]   logical ids; layer-major: one layer is one read
    expert_weights  float16, optional                [L, T, K]   router weights of those experts
    request         int32                            [T]         index into the manifest's `requests`
    position        int32                            [T]         position in the request, prompt included
    phase           uint8                            [T]         0 prefill, 1 decode
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, model_validator
from safetensors import SafetensorError, safe_open

from placement.core.model import Model
from placement.documents.document import Document
from placement.errors import TraceError
from placement.support.tensor_file import write_tensors
from placement.traces.storage.shard_reader import ShardReader
from placement.traces.storage.stored_header import read_stored_header
from placement.traces.storage.stored_path import StoredPath

SCHEMA = "expert-trace/1"
SHARD_TOKENS = 16_384
TOKEN_COLUMNS = {"request": "I32", "position": "I32", "phase": "U8"}


class RequestEntry(BaseModel):
    model_config = ConfigDict(extra="allow")

    id: str
    domain: str | None = None
    category: str | None = None


class Manifest(Document):
    """`trace.json`; unknown keys are kept. While `recording`, shards beyond `num_tokens` are not part of it yet."""

    model_config = ConfigDict(extra="allow", strict=False)
    SCHEMA = SCHEMA
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

    @classmethod
    def error(cls, message: str, faults: tuple[str, ...] = ()) -> TraceError:
        return TraceError(message)

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


def read_manifest(folder: Path | StoredPath) -> Manifest:
    """The manifest of a trace. Raises TraceError."""
    absent = f"{folder} is not a trace: it has no trace.json; give a folder of format {SCHEMA}"
    return Manifest.read(folder / "trace.json", absent=absent)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    manifest.write(folder / "trace.json")


def id_dtype(num_experts: int) -> npt.DTypeLike:
    return np.uint8 if num_experts <= 256 else np.uint16


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One shard file whose header was checked against its manifest; data are read when asked for.

    begins  byte of the file at which each tensor begins
    """

    path: Path | StoredPath
    num_tokens: int
    top_k: int
    id_dtype: np.dtype[Any]
    has_weights: bool
    begins: dict[str, int] = field(compare=False)

    @staticmethod
    def open(path: Path | StoredPath, model: Model) -> Shard:
        """Check names, dtypes and shapes in the header of `path`. Raises TraceError."""
        shapes, dtypes, metadata, begins = _header(path)
        if metadata.get("schema", SCHEMA) != SCHEMA:
            raise TraceError(f"{path} has schema {metadata['schema']!r}; {SCHEMA!r} is the one that this version reads")
        wanted = {"expert_ids": "U8" if model.num_experts <= 256 else "U16", **TOKEN_COLUMNS}
        for name, dtype in wanted.items():
            if name not in dtypes:
                raise TraceError(f"{path} has no tensor {name!r}; it needs {', '.join(wanted)}")
            if dtypes[name] != dtype:
                raise TraceError(
                    f"{path}: tensor {name!r} has dtype {dtypes[name]}; {dtype} is the one allowed for "
                    f"{model.num_experts} experts; write the shard again with that type"
                )
        if len(shapes["request"]) != 1:
            raise TraceError(f"{path}: tensor 'request' has shape {shapes['request']}; one value a token is allowed")
        num_tokens = shapes["request"][0]
        ids_shape = [model.num_layers, num_tokens, model.top_k]
        expected = {"expert_ids": ids_shape, **{name: [num_tokens] for name in TOKEN_COLUMNS}}
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
            id_dtype=np.dtype(id_dtype(model.num_experts)),
            has_weights="expert_weights" in shapes,
            begins=begins,
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
        """Rows `start:stop` of a per-token column: `request`, `position` or `phase`, [T]."""
        with self.reader() as reader:
            return reader.column(name, start, self.num_tokens if stop is None else stop)

    def layer(self, name: str, layer: int, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Rows `start:stop` of one layer of `expert_ids` or `expert_weights`, [T, K]."""
        with self.reader() as reader:
            return reader.layer(name, layer, start, self.num_tokens if stop is None else stop)


def _header(path: Path | StoredPath) -> tuple[dict[str, list[int]], dict[str, str], dict[str, Any], dict[str, int]]:
    """Shape and dtype of each tensor, the metadata, and the byte at which each tensor begins. Raises TraceError."""
    try:
        if isinstance(path, StoredPath):
            entries, metadata, start = read_stored_header(path)
            shapes = {name: list(entry["shape"]) for name, entry in entries.items()}
            dtypes = {name: str(entry["dtype"]) for name, entry in entries.items()}
        else:
            with safe_open(path, framework="np") as file:
                found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                shapes = {name: list(piece.get_shape()) for name, piece in found.items()}
                dtypes = {name: str(piece.get_dtype()) for name, piece in found.items()}
                metadata = file.metadata() or {}
            with path.open("rb") as raw:
                size = int.from_bytes(raw.read(8), "little")
                entries, start = json.loads(raw.read(size)), 8 + size
    except (SafetensorError, OSError, ValueError) as error:
        raise TraceError(f"{path} is truncated or not a safetensors file ({error}); write the shard again") from None
    begins = {name: start + entry["data_offsets"][0] for name, entry in entries.items() if name != "__metadata__"}
    return shapes, dtypes, metadata, begins


def write_shard(
    path: Path,
    *,
    ids_LTK: npt.NDArray[Any],
    request_T: npt.NDArray[Any],
    position_T: npt.NDArray[Any],
    phase_T: npt.NDArray[Any],
    weights_LTK: npt.NDArray[Any] | None = None,
) -> None:
    """Write one shard; `ids_LTK` must already have the dtype that the format asks for."""
    tensors = {
        "expert_ids": ids_LTK,
        "request": request_T.astype(np.int32, copy=False),
        "position": position_T.astype(np.int32, copy=False),
        "phase": phase_T.astype(np.uint8, copy=False),
    }
    if weights_LTK is not None:
        tensors["expert_weights"] = weights_LTK.astype(np.float16, copy=False)
    write_tensors(path, tensors, metadata={"schema": SCHEMA})
