"""SGLang's `routed_experts` (--enable-return-routed-experts, return_routed_experts in the request): logical ids.

The base64 of int32 [tokens, hidden layers, top-k] without a header, in `meta_info.routed_experts` of /generate or in
`sglext.routed_experts` of the OpenAI endpoints; rows of dense layers are zeros, and the last token has no row. Read in
the source of sglang 0.5.23, `srt/state_capturer/routed_experts.py` and `srt/entrypoints/openai/`.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.errors import OptionError, TraceError
from placement.readers.base import BATCH_TOKENS, Batch, ReadOptions, Recording, files_of, head_of, model_name, reading
from placement.readers.json_lines import json_objects
from placement.readers.request_batches import request_batches

PATTERNS = ("*.json", "*.jsonl")
KEY = "routed_experts"
MEND = "save the server's responses as JSON again"
ASK = "start SGLang with --enable-return-routed-experts and ask with return_routed_experts"


class SGLangResponses:
    name = "sglang-responses"
    title = "SGLang responses"

    def sniff(self, path: Path) -> str | None:
        files = files_of(path, *PATTERNS)
        head = head_of(files[0], 1 << 20) if files else b""
        if f'"{KEY}"'.encode() not in head:
            return None
        holder = next((one for one in ("meta_info", "sglext") if f'"{one}"'.encode() in head), None)
        return None if holder is None else f"{files[0].name} has {holder} with {KEY}"

    def read(self, path: Path, options: ReadOptions) -> Recording:
        files = files_of(path, *PATTERNS)
        where, _, tokens, _, values = next(_responses(files), (str(path), "", None, 0, None))
        if values is None:
            raise TraceError(f"{path} has no responses; {MEND}")
        if tokens is None:
            raise TraceError(f"{where} does not say its tokens (prompt_tokens and completion_tokens); {MEND}")
        width = _width(where, values, tokens - 1)
        if options.top_k is None:
            raise OptionError(
                f"{where}: {width} ids a token are layers times top-k; say which with --top-k "
                f"({_guess(values, width)} is the largest for which the ids of every set differ)"
            )
        if options.top_k < 1 or width % options.top_k:
            raise OptionError(f"--top-k {options.top_k} does not divide the {width} ids of a token in {where}")
        num_layers = width // options.top_k
        return Recording(
            model=model_name(path),
            layer_ids=options.layer_ids or tuple(range(num_layers)),
            num_hidden_layers=None if options.layer_ids else num_layers,
            batches=lambda: _batches(files, num_layers, width // num_layers),
        )


def _batches(files: list[Path], num_layers: int, top_k: int) -> Iterator[Batch]:
    for where, name, tokens, prompt, values in _responses(files):
        width = num_layers * top_k
        if tokens is None:
            raise TraceError(f"{where} does not say its tokens (prompt_tokens and completion_tokens); {MEND}")
        if values.size % width:
            raise TraceError(f"{where}: {values.size} ids are no rows of {num_layers} layers by top-{top_k}; {MEND}")
        ids_TLK = values.reshape(-1, num_layers, top_k)
        start = max(tokens - 1 - len(ids_TLK), 0)  # routed_experts_start_len left out those before
        chunks = (ids_TLK[at : at + BATCH_TOKENS] for at in range(0, len(ids_TLK), BATCH_TOKENS))
        yield from request_batches(where, name, chunks, prompt_tokens=prompt, start=start)


def _responses(files: list[Path]) -> Iterator[tuple[str, str, int | None, int | None, npt.NDArray[np.int32]]]:
    """(where, request, tokens of prompt and answer, tokens of the prompt, ids) of every response."""
    for path in files:
        for number, (where, response) in enumerate(json_objects(path)):
            meta, text = _found(response)
            if not isinstance(text, str):
                raise TraceError(f"{where} has no {KEY}; {ASK}")
            with reading(where, MEND):
                values = np.frombuffer(base64.b64decode(text, validate=True), dtype="<i4")
            prompt, answer = meta.get("prompt_tokens"), meta.get("completion_tokens")
            name = str(meta.get("id") or response.get("id") or f"{path.stem}/{number}")
            if isinstance(prompt, int) and isinstance(answer, int):
                yield where, name, prompt + answer, prompt, values
            else:
                yield where, name, None, None, values


def _found(response: Any) -> tuple[dict[str, Any], Any]:
    """(what tells the numbers of tokens, the ids as text) of a response."""
    if not isinstance(response, dict):
        return {}, None
    meta, extra, usage = (response.get(key) for key in ("meta_info", "sglext", "usage"))
    if isinstance(meta, dict) and KEY in meta:
        return meta, meta[KEY]
    return usage if isinstance(usage, dict) else {}, extra.get(KEY) if isinstance(extra, dict) else None


def _width(where: str, values: npt.NDArray[np.int32], rows: int) -> int:
    """Ids of a token; `routed_experts_start_len` may have left out rows, but not from the first response."""
    if rows < 1 or not values.size or values.size % rows:
        raise TraceError(
            f"{where}: {values.size} ids do not make {rows} rows, one for each token but the last; "
            f"put a response first that was asked for with routed_experts_start_len=0"
        )
    return values.size // rows


def _guess(values: npt.NDArray[np.int32], width: int) -> int:
    for top_k in (one for one in range(min(width, 64), 1, -1) if width % one == 0):
        sets = np.sort(values.reshape(-1, top_k), axis=1)
        if (sets[:, 1:] != sets[:, :-1]).all(axis=1)[sets.any(axis=1)].all():
            return top_k
    return 1
