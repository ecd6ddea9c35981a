"""Megatron Core's router trace (--moe-routing-trace-path): `router_trace_rank*.jsonl`, a line for a layer and step.

    {"step": 0, "stage": "pre_dispatch", "block": "decoder", "layer": 3, "rank": 0, "num_tokens": 2, "topk": 2,
     "top_indices": [[5, 1], [0, 2]]}

Ids are logical. In training a step has several microbatches: the n-th line of a layer is of the n-th one. Each
microbatch of a rank is a request here, since the trace tells none. Read in the source of Megatron-LM,
`megatron/core/transformer/moe/router_trace.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from placement.errors import TraceError
from placement.readers.base import Batch, ReadOptions, Recording, files_of, head_of, model_name, reading, whole_number
from placement.readers.json_lines import json_objects
from placement.readers.repeats import Repeats
from placement.traces.format import PREFILL, RequestEntry

PATTERN = "router_trace_rank*.jsonl"
KEYS = ("step", "layer", "num_tokens", "topk")
MEND = "trace it again with --moe-routing-trace-path"


class Megatron:
    name = "megatron"
    title = "Megatron router trace"

    def sniff(self, path: Path) -> str | None:
        files = files_of(path, PATTERN)
        head = head_of(files[0]) if files else b""
        if b'"top_indices"' in head and b'"num_tokens"' in head:
            return f"{files[0].name} has lines with top_indices"
        return None

    def read(self, path: Path, options: ReadOptions) -> Recording:
        files = files_of(path, PATTERN)
        if not files:
            raise TraceError(f"{path} has no {PATTERN}; {MEND}")
        of_file = {file: {layer for _, _, layer, _ in _sets(file, [])} for file in files}
        layers = next(iter(of_file.values()))
        for file, found in of_file.items():
            if found != layers:
                raise TraceError(
                    f"{file} has layers {sorted(found)}, {files[0]} has {sorted(layers)}; convert the ranks of each "
                    f"pipeline stage apart"
                )
        if not layers:
            raise TraceError(f"{path} has no layers of the decoder; {MEND}")
        ordered = tuple(sorted(layers))
        notes = ["a microbatch is called a request, and its rows positions: the trace tells neither"]
        return Recording(
            model=model_name(path), layer_ids=ordered, batches=lambda: _batches(files, ordered, notes), notes=notes
        )


def _sets(path: Path, notes: list[str]) -> Iterator[tuple[str, int, int, npt.NDArray[np.int32]]]:
    """(where, step, layer, ids [T, K]) of every line of the decoder."""
    for where, line in json_objects(path):
        if not isinstance(line, dict) or "top_indices" not in line:
            raise TraceError(f"{where} is no line of a router trace: it has no top_indices; {MEND}")
        if line.get("block", "decoder") != "decoder":
            if not notes or "multi-token" not in notes[-1]:
                notes.append("lines of multi-token prediction (block mtp) left out")
            continue
        step, layer, tokens, top_k = (whole_number(line.get(key), key, where) for key in KEYS)
        with reading(where, MEND):
            ids_TK = np.array(line["top_indices"])
            if not tokens and not ids_TK.size:
                ids_TK = np.zeros((0, top_k), dtype=np.int32)
            if ids_TK.shape != (tokens, top_k) or ids_TK.dtype.kind != "i":
                raise ValueError(
                    f"top_indices has shape {list(ids_TK.shape)}, num_tokens and topk are {tokens}, {top_k}"
                )
        yield where, step, layer, np.clip(ids_TK, -(2**31), 2**31 - 1).astype(np.int32)


def _batches(files: list[Path], layer_ids: tuple[int, ...], notes: list[str]) -> Iterator[Batch]:
    repeats = Repeats(len(files))
    incomplete = 0
    for path in files:
        for step, microbatches in _steps(path, notes):
            for number, (where, found) in enumerate(microbatches):
                shapes = {ids_TK.shape for ids_TK in found.values()}
                if len(found) < len(layer_ids) or len(shapes) > 1:
                    incomplete += 1
                    continue
                batch = _batch(where, f"{path.stem}/step {step}/{number}", [found[layer] for layer in layer_ids])
                if len(batch.request_T) and not repeats.seen((step, batch.ids_LTK.shape), [batch.ids_LTK]):
                    yield batch
    for count, what in (
        (repeats.copies, "microbatches that another rank has too counted once"),
        (incomplete, "microbatches without all layers left out"),
    ):
        if count and f"{count:,} {what}" not in notes:
            notes.append(f"{count:,} {what}")


def _steps(path: Path, notes: list[str]) -> Iterator[tuple[int, list[tuple[str, dict[int, npt.NDArray[np.int32]]]]]]:
    """(step, its microbatches as (where they begin, ids by layer)); a step's lines follow each other."""
    current: int | None = None
    microbatches: list[tuple[str, dict[int, npt.NDArray[np.int32]]]] = []
    times: dict[int, int] = defaultdict(int)
    for where, step, layer, ids_TK in _sets(path, notes):
        if step != current:
            if current is not None:
                yield current, microbatches
            current, microbatches, times = step, [], defaultdict(int)
        if times[layer] == len(microbatches):
            microbatches.append((where, {}))
        microbatches[times[layer]][1][layer] = ids_TK
        times[layer] += 1
    if current is not None:
        yield current, microbatches


def _batch(where: str, name: str, ids: list[npt.NDArray[np.int32]]) -> Batch:
    ids_LTK = np.stack(ids)
    count = ids_LTK.shape[1]
    return Batch(
        where=where,
        ids_LTK=ids_LTK,
        requests=(RequestEntry(id=name),),
        request_T=np.zeros(count, dtype=np.int32),
        position_T=np.arange(count, dtype=np.int32),
        phase_T=np.full(count, PREFILL, dtype=np.uint8),
    )
