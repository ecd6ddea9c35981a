"""vLLM's `routed_experts` (--enable-return-routed-experts): top-k sets of each token of a request, logical ids.

[tokens, hidden layers, top-k], uint8 up to 256 experts, else uint16; rows of dense layers are zeros, and the last token
has no row. Either a `.npy` of `CompletionOutput.routed_experts`, one a request, or responses of the OpenAI server
(`.json`, `.jsonl`), where `choices[].routed_experts` is the base64 of such a `.npy`. Read in the source of vllm 0.33.0:
`vllm/model_executor/layers/fused_moe/routed_experts_capturer.py`, `vllm/entrypoints/openai/`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from placement.core.model import MOST_LAYERS
from placement.errors import TraceError
from placement.readers.base import BATCH_TOKENS, Batch, ReadOptions, Recording, files_of, head_of, model_name, reading
from placement.readers.json_lines import json_objects
from placement.readers.request_batches import request_batches
from placement.support.array_files import ArrayStream, open_array

MEND = "save output.routed_experts with np.save, or the server's responses as JSON, again"
PATTERNS = ("*.npy", "*.json", "*.jsonl")
KEY = b'"routed_experts"'


class VLLM:
    name = "vllm"
    title = "vLLM routed_experts"

    def sniff(self, path: Path) -> str | None:
        files = files_of(path, *PATTERNS)
        if not files:
            return None
        if files[0].suffix == ".npy":
            try:
                with files[0].open("rb") as file:
                    array = open_array(file)
            except (OSError, ValueError):
                return None
            if len(array.shape) == 3 and array.dtype in (np.uint8, np.uint16):
                return f"{files[0].name} is an array [tokens, layers, top-k] of {array.dtype}"
            return None
        head = head_of(files[0], 1 << 20)
        if b'"choices"' in head and KEY in head and b'"sglext"' not in head:
            return f"{files[0].name} has choices with routed_experts"
        return None

    def read(self, path: Path, options: ReadOptions) -> Recording:
        files = files_of(path, *PATTERNS)
        if not files:
            raise TraceError(f"{path} has no {', '.join(PATTERNS)}; {MEND}")
        num_layers = next((array.shape[1] for _, _, _, array in _arrays(files)), 0)
        notes: list[str] = []
        if any(file.suffix == ".npy" for file in files):
            notes.append("a .npy does not say where the prompt ends: all its tokens are called prefill")
        return Recording(
            model=model_name(path),
            layer_ids=options.layer_ids or tuple(range(num_layers)),
            num_hidden_layers=None if options.layer_ids else num_layers,
            batches=lambda: _batches(files),
            notes=notes,
        )


def _batches(files: list[Path]) -> Iterator[Batch]:
    for where, name, (prompt, start), array in _arrays(files):
        with reading(where, MEND):
            yield from request_batches(where, name, array.chunks(BATCH_TOKENS), prompt_tokens=prompt, start=start)


def _arrays(files: list[Path]) -> Iterator[tuple[str, str, tuple[int | None, int], ArrayStream]]:
    """(where, request, (prompt tokens, position of the first row), array) of every request."""
    for path in files:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                yield str(path), path.stem, (None, 0), _checked(str(path), file)
            continue
        for number, (where, response) in enumerate(json_objects(path)):
            choices = response.get("choices") if isinstance(response, dict) else None
            if not isinstance(choices, list):
                raise TraceError(f"{where} is no response of the OpenAI server: it has no choices; {MEND}")
            for index, choice in enumerate(choices):
                text = choice.get("routed_experts") if isinstance(choice, dict) else None
                if not isinstance(text, str):
                    raise TraceError(
                        f"{where}: choice {index} has no routed_experts; start vLLM with --enable-return-routed-experts"
                    )
                with reading(where, MEND):
                    content = base64.b64decode(text, validate=True)
                array = _checked(where, io.BytesIO(content))
                name = str(response.get("id") or f"{path.stem}/{number}") + (f"/{index}" if len(choices) > 1 else "")
                yield where, name, _positions(response, len(choices), array.shape[0]), array


def _positions(response: dict[str, Any], choices: int, rows: int) -> tuple[int | None, int]:
    """(tokens of the prompt if told, position of the first row): `routed_experts_prompt_start` drops those before."""
    usage = response.get("usage")
    prompt, total = (usage.get(key) if isinstance(usage, dict) else None for key in ("prompt_tokens", "total_tokens"))
    if not isinstance(prompt, int):
        return None, 0
    return prompt, max(total - 1 - rows, 0) if choices == 1 and isinstance(total, int) else 0


def _checked(where: str, file: Any) -> ArrayStream:
    with reading(where, MEND):
        array = open_array(file)
    if len(array.shape) != 3 or array.dtype not in (np.uint8, np.uint16) or array.shape[1] > MOST_LAYERS:
        raise TraceError(
            f"{where}: routed_experts has shape {list(array.shape)} and dtype {array.dtype}; "
            f"[tokens, layers, top-k] of uint8 or uint16 is needed; {MEND}"
        )
    return array
