"""vLLM's `routed_experts` (--enable-return-routed-experts): top-k sets of each token of a request, logical ids.

[tokens, hidden layers, top-k], uint8 up to 256 experts, else uint16 (int32 in some versions); rows of dense layers are
zeros, and the last token has no row. Either a `.npy` of `CompletionOutput.routed_experts`, one a request, or responses
of the server (`.json`, `.jsonl`): see `vllm_responses`. Read in the source of vllm 0.33.0:
`vllm/model_executor/layers/fused_moe/routed_experts_capturer.py`, `vllm/entrypoints/openai/`,
`vllm/entrypoints/scale_out/token_in_token_out/`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from placement.core.model import MOST_LAYERS
from placement.errors import TraceError
from placement.readers.base import BATCH_TOKENS, Batch, ReadOptions, Recording, files_of, model_name, reading
from placement.readers.request_batches import request_batches
from placement.readers.responses import Remarks, heads_with
from placement.readers.vllm_responses import KEY, PROMPT_KEY, rows_in
from placement.support.array_files import ArrayStream, open_array

MEND = "save output.routed_experts with np.save, or the server's responses as JSON, again"
ASK = "start vLLM with --enable-return-routed-experts"
ARRAYS, RESPONSES = ("*.npy",), ("*.json", "*.jsonl")


class VLLM:
    name = "vllm"
    title = "vLLM routed_experts"

    def sniff(self, path: Path) -> str | None:
        for file in files_of(path, *ARRAYS)[:1]:
            try:
                with file.open("rb") as stream:
                    array = open_array(stream)
                if len(array.shape) == 3 and array.dtype in (np.uint8, np.uint16):
                    return f"{file.name} is an array [tokens, layers, top-k] of {array.dtype}"
            except (OSError, ValueError):
                pass
        for file, head in heads_with(files_of(path, *RESPONSES), KEY, PROMPT_KEY):
            if b'"choices"' in head and b'"sglext"' not in head:
                return f"{file.name} has choices with routed_experts"
        return None

    def read(self, path: Path, options: ReadOptions) -> Recording:
        files = files_of(path, *ARRAYS, *RESPONSES)
        if not files:
            raise TraceError(f"{path} has no {', '.join(ARRAYS + RESPONSES)}; {MEND}")
        arrays, logs = [one for one in files if one.suffix == ".npy"], [one for one in files if one.suffix != ".npy"]
        remarks = Remarks()
        num_layers = _layers(arrays, logs, remarks)
        if num_layers is None:
            raise remarks.nothing_left(path, ASK)
        notes: list[str] = []
        if arrays:
            notes.append("a .npy does not say where the prompt ends: all its tokens are called prefill")
        return Recording(
            model=model_name(path),
            layer_ids=options.layer_ids or tuple(range(num_layers)),
            num_hidden_layers=None if options.layer_ids else num_layers,
            batches=lambda: _batches(arrays, logs, notes),
            notes=notes,
        )


def _layers(arrays: list[Path], logs: list[Path], remarks: Remarks) -> int | None:
    """Layers of the first rows, None where there are none."""
    for path in arrays:
        with path.open("rb") as file:
            return _checked(str(path), file).shape[1]
    return next((rows.array.shape[1] for rows in rows_in(logs, remarks)), None)


def _batches(arrays: list[Path], logs: list[Path], notes: list[str]) -> Iterator[Batch]:
    for path in arrays:
        with reading(path, MEND), path.open("rb") as file:
            chunks = _checked(str(path), file).chunks(BATCH_TOKENS)
            yield from request_batches(str(path), path.stem, chunks, prompt_tokens=None)
    remarks = Remarks()
    for rows in rows_in(logs, remarks):
        pieces = (rows.array[at : at + BATCH_TOKENS] for at in range(0, len(rows.array), BATCH_TOKENS))
        yield from request_batches(
            rows.where,
            rows.name,
            pieces,
            prompt_tokens=rows.prompt_tokens,
            start=rows.start,
            tokens=rows.tokens,
            ids=rows.ids,
        )
    notes.extend(note for note in remarks.notes() if note not in notes)


def _checked(where: str, file: IO[bytes]) -> ArrayStream:
    with reading(where, MEND):
        array = open_array(file)
    if len(array.shape) != 3 or array.dtype.kind not in "iu" or array.shape[1] > MOST_LAYERS:
        raise TraceError(
            f"{where}: routed_experts has shape {list(array.shape)} and dtype {array.dtype}; "
            f"[tokens, layers, top-k] of whole numbers is needed; {MEND}"
        )
    return array
