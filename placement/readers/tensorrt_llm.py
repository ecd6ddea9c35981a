"""TensorRT-LLM's expert statistics (EXPERT_STATISTIC_ITER_RANGE, EXPERT_STATISTIC_PATH): a folder.

`meta_info.json` has `num_experts` and `num_experts_per_token`; `rank<r>.safetensors` has for every iteration and layer
a tensor "<iteration>_<layer>" [E] of counts, by absolute layer: counts. Where `rank<r>_raw.safetensors` are there, of
the ids [tokens, top-k] themselves, they are read instead: a trace. Read in the source of TensorRT-LLM,
`examples/wide_ep/ep_load_balancer/utils.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from placement.core.model import ranges
from placement.errors import TraceError
from placement.readers.base import (
    Batch,
    CountRecording,
    ReadOptions,
    Recording,
    files_of,
    model_name,
    reading,
    whole_number,
)
from placement.readers.count_rows import CountRows
from placement.support.text_files import parse_json
from placement.traces.format import PREFILL, RequestEntry

KEYS = ("num_experts", "num_experts_per_token")
META, PATTERN, RAW = "meta_info.json", "rank*.safetensors", "_raw"
MEND = "record again with EXPERT_STATISTIC_ITER_RANGE, up to an iteration past its end"


class TensorRTLLM:
    name = "tensorrt-llm"
    title = "TensorRT-LLM expert statistics"

    def sniff(self, path: Path) -> str | None:
        folder = path if path.is_dir() else path.parent
        if not (folder / META).is_file() or (path.is_file() and path.name != META):
            return None
        return f"it has {META} and {PATTERN}" if files_of(folder, PATTERN) else None

    def read(self, path: Path, options: ReadOptions) -> Recording | CountRecording:
        folder = path if path.is_dir() else path.parent
        with reading(folder / META, MEND):
            meta = parse_json((folder / META).read_bytes())
        if not isinstance(meta, dict):
            raise TraceError(f"{folder / META} is no object of JSON; {MEND}")
        experts, top_k = (whole_number(meta.get(key), key, str(folder / META), least=1) for key in KEYS)
        files = files_of(folder, PATTERN)
        raw = [file for file in files if file.stem.endswith(RAW)]
        if not files:
            raise TraceError(f"{folder} has no {PATTERN}; {MEND}")
        keys = {file: found for file in files for found in [_keys(file)] if not raw or file in raw}
        layers = sorted({layer for found in keys.values() for _, layer in found})
        if not layers:
            raise TraceError(f"{folder} has no tensors in {PATTERN}; {MEND}")
        if raw:
            return Recording(
                model=model_name(folder),
                layer_ids=tuple(layers),
                num_experts=experts,
                batches=lambda: _batches(keys, layers),
                notes=["an iteration of a rank is called a request: the statistics tell none"],
            )
        return _counts(folder, keys, layers, experts, top_k)


def _counts(
    folder: Path, keys: dict[Path, dict[tuple[int, int], str]], layers: list[int], experts: int, top_k: int
) -> CountRecording:
    told = set().union(*keys.values())
    iterations = sorted({iteration for iteration, _ in told})
    for iteration in range(iterations[0], iterations[-1] + 1):
        for layer in layers:
            if (iteration, layer) not in told:
                raise TraceError(f"{folder}: no rank has iteration {iteration} of layer {layer}; {MEND}")
    rows = CountRows((len(layers), experts))
    for path, found in keys.items():
        with _opened(path) as file:
            for iteration in iterations:
                count_LE = np.zeros(rows.shape, dtype=np.int64)
                for number, layer in enumerate(layers):
                    key = found.get((iteration, layer))
                    if key is not None:
                        count_LE[number] = _checked(path, key, np.asarray(file.get_tensor(key)), experts)
                rows.add(count_LE, key=iteration)
    return CountRecording(
        model=model_name(folder),
        layer_ids=tuple(layers),
        count_QLE=rows.array(),
        top_k=top_k,
        notes=[rows.note("iterations"), f"layers {ranges(layers)} have statistics"],
    )


def _checked(path: Path, key: str, count_E: npt.NDArray[Any], experts: int) -> npt.NDArray[Any]:
    if count_E.shape != (experts,) or count_E.dtype.kind not in "iu" or count_E.min(initial=0) < 0:
        raise TraceError(f"{path}: {key} must be {experts} whole numbers of at least 0; {MEND}")
    return count_E


def _batches(keys: dict[Path, dict[tuple[int, int], str]], layers: list[int]) -> Iterator[Batch]:
    for path, found in keys.items():
        with _opened(path) as file:
            for iteration in sorted({iteration for iteration, _ in found}):
                where = f"{path}: iteration {iteration}"
                names = [found[iteration, layer] for layer in layers if (iteration, layer) in found]
                parts = [np.asarray(file.get_tensor(name)) for name in names]
                alike = {(part.shape, part.dtype.kind in "iu") for part in parts} == {(parts[0].shape, True)}
                if len(parts) != len(layers) or not alike or parts[0].ndim != 2:
                    raise TraceError(
                        f"{where} needs whole numbers [tokens, top-k] of one shape in {len(layers)} layers; {MEND}"
                    )
                count = len(parts[0])
                yield Batch(
                    where=where,
                    ids_LTK=np.stack([np.clip(part, -(2**31), 2**31 - 1).astype(np.int32) for part in parts]),
                    requests=(RequestEntry(id=f"{path.stem}/{iteration}"),),
                    request_T=np.zeros(count, dtype=np.int32),
                    position_T=np.arange(count, dtype=np.int32),
                    phase_T=np.full(count, PREFILL, dtype=np.uint8),
                )


def _keys(path: Path) -> dict[tuple[int, int], str]:
    """Name of the tensor of every (iteration, layer). Raises TraceError."""
    with _opened(path) as file:
        return {(int(one), int(two)): name for name in list(file.keys()) for one, _, two in [name.partition("_")]}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An open safetensors file. Raises TraceError, then and while it is read."""
    try:
        with reading(path, MEND), safe_open(path, framework="np") as file:
            yield file
    except SafetensorError as error:
        raise TraceError(f"{path} is truncated or not a safetensors file ({error}); {MEND}") from None
