"""Parquet with documented columns, one row a token; needs the extra `parquet` (pyarrow).

`expert_ids` is a list of layers, each a list of K whole numbers; beside it what is known of `expert_weights` (the same
shape), `request` (text or whole number), `position`, `phase`, `token` (ids) and `domain`. The schema's
metadata, or those of the file, may tell `layer_ids` (3-60), `num_experts` and `model`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.errors import TraceError
from placement.readers.base import (
    BATCH_TOKENS,
    Batch,
    ReadOptions,
    Recording,
    files_of,
    head_of,
    model_name,
    parse_ids,
    reading,
)
from placement.readers.request_batches import LAST_POSITION, half_weights, layers_first, whole_column
from placement.readers.token_ids import known_ids
from placement.traces.format import DRAFT, TOKEN, RequestEntry

IDS, WEIGHTS = "expert_ids", "expert_weights"
NUMBERS = ("position", "phase")
MEND = f"write the column {IDS} as list<list<int>>: layers of top-k sets, one row a token"


class Parquet:
    name = "parquet"
    title = "Parquet"

    def sniff(self, path: Path) -> str | None:
        files = files_of(path, "*.parquet")
        return f"{files[0].name} is a Parquet file" if files and head_of(files[0], 4) == b"PAR1" else None

    def read(self, path: Path, options: ReadOptions) -> Recording:
        files = files_of(path, "*.parquet")
        if not files:
            raise TraceError(f"{path} has no *.parquet; {MEND}")
        with _opened(files[0]) as file, reading(files[0], MEND):
            names = file.schema_arrow.names
            metadata = {key.decode(): value.decode() for key, value in (file.schema_arrow.metadata or {}).items()}
        if IDS not in names:
            raise TraceError(f"{files[0]} has no column {IDS!r}; it has {', '.join(names) or 'none'}; {MEND}")
        first = next(_batches(files), None)
        if first is None:
            raise TraceError(f"{path} has no rows; record some requests first")
        told = metadata.get("layer_ids")
        with reading(files[0], "write num_experts in the metadata as a number"):
            experts = int(metadata["num_experts"]) if "num_experts" in metadata else None
        return Recording(
            model=metadata.get("model", model_name(path)),
            layer_ids=parse_ids(told) if told else options.layer_ids or tuple(range(len(first.ids_LTK))),
            num_experts=experts,
            batches=lambda: _batches(files),
            notes=[f"no {name} is told" for name in ("request", *NUMBERS) if name not in names],
        )


def _opened(path: Path) -> Any:
    """An open file of pyarrow. Raises TraceError."""
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise TraceError(f"{path} is read with pyarrow; install expert-placement[parquet]") from None
    with reading(path, MEND):
        # its metadata of columns are left alone: damaged ones end the process within pyarrow
        return ParquetFile(path)


def _batches(files: list[Path]) -> Iterator[Batch]:
    for path in files:
        with _opened(path) as file, reading(path, MEND):
            told = (IDS, WEIGHTS, "request", "domain", *NUMBERS, TOKEN)
            wanted = [one for one in told if one in file.schema_arrow.names]
            start = 0
            for part in file.iter_batches(batch_size=BATCH_TOKENS, columns=wanted):
                if part.num_rows:
                    yield _batch(str(path), {name: part.column(name) for name in wanted}, start)
                start += part.num_rows


def _batch(where: str, columns: dict[str, Any], start: int) -> Batch:
    ids_TLK = _nested(columns[IDS], IDS)
    count = len(ids_TLK)
    if ids_TLK.dtype.kind not in "iu":
        raise ValueError(f"{IDS} has values of {ids_TLK.dtype}")
    owners = columns["request"].to_pylist() if "request" in columns else [Path(where).stem] * count
    domains = columns["domain"].to_pylist() if "domain" in columns else [None] * count
    number_of: dict[str, int] = {}
    entries: list[RequestEntry] = []
    for owner, domain in zip(owners, domains, strict=True):
        if str(owner) not in number_of:
            number_of[str(owner)] = len(entries)
            known = {} if domain is None else {"domain": str(domain)}
            entries.append(RequestEntry(id=str(owner), **known))
    weights = _nested(columns[WEIGHTS], WEIGHTS) if WEIGHTS in columns else None
    if weights is not None and (weights.shape != ids_TLK.shape or weights.dtype.kind != "f"):
        raise ValueError(f"{WEIGHTS} must be floating-point numbers in the shape of {IDS}")
    return Batch(
        where=where,
        ids_LTK=layers_first(ids_TLK),
        requests=tuple(entries),
        request_T=np.array([number_of[str(owner)] for owner in owners], dtype=np.int32),
        position_T=_numbers(columns, "position", np.arange(start, start + count), LAST_POSITION),
        phase_T=_numbers(columns, "phase", np.zeros(count, dtype=np.uint8), DRAFT).astype(np.uint8),
        weights_LTK=None if weights is None else half_weights(weights),
        token_T=_tokens(columns),
    )


def _nested(column: Any, name: str) -> npt.NDArray[Any]:
    """[T, L, K] of a column of lists of lists. Raises ValueError where they are not all of the same sizes."""
    layers = column.flatten()
    values = layers.flatten()
    array = values.to_numpy(zero_copy_only=False)
    num_layers = len(layers) // max(len(column), 1)
    top_k = len(array) // max(len(layers), 1)
    sizes = (column.value_lengths().to_numpy(False), layers.value_lengths().to_numpy(False))
    if values.null_count or (sizes[0] != num_layers).any() or (sizes[1] != top_k).any():
        raise ValueError(f"the rows of {name} have different numbers of layers or experts")
    return np.asarray(array).reshape(len(column), num_layers, top_k)


def _tokens(columns: dict[str, Any]) -> npt.NDArray[np.int32] | None:
    """Ids of the tokens, -1 where there is none. Raises ValueError."""
    if TOKEN not in columns:
        return None
    values = columns[TOKEN].fill_null(-1).to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "iu":
        raise ValueError(f"{TOKEN} has dtype {values.dtype}; whole numbers are needed")
    return known_ids(values)


def _numbers(columns: dict[str, Any], name: str, default: npt.NDArray[Any], most: int) -> npt.NDArray[np.int32]:
    values = columns[name].to_numpy(zero_copy_only=False) if name in columns else default
    return whole_column(np.asarray(values), name, most)
