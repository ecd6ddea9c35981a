"""SGLang's `routed_experts` (--enable-return-routed-experts, return_routed_experts in the request): logical ids.

The base64 of int32 [tokens, hidden layers, top-k] without a header, in `meta_info.routed_experts` of /generate or in
`sglext.routed_experts` of the OpenAI endpoints; `routed_experts_dtype` beside it names another type (sglang#31219).
Rows of dense layers are zeros, and the last token has no row. Read in the source of sglang 0.5.23,
`srt/state_capturer/routed_experts.py` and `srt/entrypoints/openai/`.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.errors import OptionError, TraceError
from placement.readers.base import BATCH_TOKENS, Batch, ReadOptions, Recording, files_of, model_name, reading
from placement.readers.request_batches import request_batches
from placement.readers.responses import ABSENT, DRAFTS, WITHOUT, Remarks, heads_with, number_in, responses
from placement.readers.token_ids import TokenIds

PATTERNS = ("*.json", "*.jsonl")
KEY, DTYPE_KEY = "routed_experts", "routed_experts_dtype"
HOLDERS = ("meta_info", "sglext")
DTYPES = {"int32": "<i4", "int16": "<i2", "uint16": "<u2", "uint8": "<u1"}
FORMS = (
    f"forms that are read: the base64 of {', '.join(DTYPES)} (SGLang 0.5.23: int32; "
    f"since sglang#31219 as {DTYPE_KEY} says); bring what another version writes into one of them"
)
LOOKED_AT = 16  # responses that tell how many ids a token has
MEND = "save the server's responses as JSON again"
ASK = "start SGLang with --enable-return-routed-experts and ask with return_routed_experts"


class SGLangResponses:
    name = "sglang-responses"
    title = "SGLang responses"

    def sniff(self, path: Path) -> str | None:
        for file, head in heads_with(files_of(path, *PATTERNS), KEY):
            holder = next((one for one in HOLDERS if f'"{one}"'.encode() in head), None)
            return None if holder is None else f"{file.name} has {holder} with {KEY}"
        return None

    def read(self, path: Path, options: ReadOptions) -> Recording:
        files = files_of(path, *PATTERNS)
        remarks = Remarks()
        some = list(islice(_found(files, remarks), LOOKED_AT))
        if not some:
            raise remarks.nothing_left(path, ASK)
        first, width = some[0], _width(some)
        if options.top_k is None:
            raise OptionError(
                f"{first.where}: {width} ids a token are layers times top-k; say which with --top-k "
                f"({_guess(first.values, width)} is the largest for which the ids of every set differ)"
            )
        if options.top_k < 1 or width % options.top_k:
            raise OptionError(f"--top-k {options.top_k} does not divide the {width} ids of a token in {first.where}")
        num_layers = width // options.top_k
        notes: list[str] = []
        return Recording(
            model=model_name(path),
            layer_ids=options.layer_ids or tuple(range(num_layers)),
            num_hidden_layers=None if options.layer_ids else num_layers,
            batches=lambda: _batches(files, num_layers, width // num_layers, notes),
            notes=notes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Response:
    """Ids of a response, without a shape, and its tokens: those of the prompt, and all; what is known of their ids."""

    where: str
    name: str
    values: npt.NDArray[Any]
    prompt: int
    tokens: int
    ids: TokenIds | None


def _batches(files: list[Path], num_layers: int, top_k: int, notes: list[str]) -> Iterator[Batch]:
    width = num_layers * top_k
    remarks = Remarks()
    for one in _found(files, remarks):
        if one.values.size % width:
            raise TraceError(
                f"{one.where}: {one.values.size} ids are no rows of {num_layers} layers by top-{top_k}; {MEND}"
            )
        ids_TLK = one.values.reshape(-1, num_layers, top_k)
        start = max(one.tokens - 1 - len(ids_TLK), 0)  # routed_experts_start_len left out those before
        remarks.add(ABSENT, one.where, min(start, one.prompt))
        remarks.add(DRAFTS, one.where, max(len(ids_TLK) - one.tokens, 0))
        chunks = (ids_TLK[at : at + BATCH_TOKENS] for at in range(0, len(ids_TLK), BATCH_TOKENS))
        yield from request_batches(
            one.where, one.name, chunks, prompt_tokens=one.prompt, start=start, tokens=one.tokens, ids=one.ids
        )
    notes.extend(note for note in remarks.notes() if note not in notes)


def _found(files: list[Path], remarks: Remarks) -> Iterator[_Response]:
    for where, default, response in responses(files, lambda one: any(key in one for key in HOLDERS), remarks):
        meta, holder = _holders(response)
        text = holder.get(KEY)
        if not text:
            remarks.add(WITHOUT, where)
            continue
        named = holder.get(DTYPE_KEY) or "int32"
        dtype = DTYPES.get(named) if isinstance(named, str) else None
        if not isinstance(text, str) or dtype is None:
            raise TraceError(f"{where}: {KEY} is a {type(text).__name__} of {DTYPE_KEY} {named!r:.40}; {FORMS}")
        with reading(where, MEND):
            values = np.frombuffer(base64.b64decode(text, validate=True), dtype=dtype)
        prompt, answer = number_in(meta, "prompt_tokens"), number_in(meta, "completion_tokens")
        if prompt is None or answer is None:
            raise TraceError(f"{where} does not say its tokens (prompt_tokens and completion_tokens); {MEND}")
        name = str(meta.get("id") or response.get("id") or default)
        told = _token_ids(response)
        ids = TokenIds.of(where, *told, prompt=prompt, answer=answer, remarks=remarks)
        yield _Response(where=where, name=name, values=values, prompt=prompt, tokens=prompt + answer, ids=ids)


def _holders(response: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what tells the numbers of tokens, what holds the ids) of a response."""
    meta, extra, usage = (one if isinstance(one, dict) else {} for one in map(response.get, (*HOLDERS, "usage")))
    return (meta, meta) if meta.get(KEY) else (usage, extra)


def _token_ids(response: dict[str, Any]) -> tuple[Any, Any]:
    """Lists of the ids of prompt and answer: of /generate, or of the only choice of an OpenAI endpoint."""
    choices = response.get("choices")
    choice = choices[0] if isinstance(choices, list) and len(choices) == 1 and isinstance(choices[0], dict) else {}
    prompts = [one.get("prompt_token_ids") for one in (response, choice)]
    answers = [response.get("output_ids"), choice.get("token_ids"), choice.get("response_token_ids")]
    return tuple(next((ids for ids in told if ids is not None), None) for told in (prompts, answers))  # type: ignore[return-value]


def _width(first: list[_Response]) -> int:
    """Ids of a token, as most of the first responses have; some may lack rows (`routed_experts_start_len`, aborted)."""
    rows_of = [(one.values.size, one.tokens - 1) for one in first]
    widths = Counter(size // rows for size, rows in rows_of if rows > 0 and size and size % rows == 0)
    if not widths:
        size, rows = rows_of[0]
        raise TraceError(
            f"{first[0].where}: {size} ids do not make {rows} rows, one for each token but the last; among the first "
            f"{LOOKED_AT} responses put one that was asked for with routed_experts_start_len=0"
        )
    return widths.most_common(1)[0][0]


def _guess(values: npt.NDArray[Any], width: int) -> int:
    for top_k in (one for one in range(min(width, 64), 1, -1) if width % one == 0):
        sets = np.sort(values.reshape(-1, top_k), axis=1)
        if (sets[:, 1:] != sets[:, :-1]).all(axis=1)[sets.any(axis=1)].all():
            return top_k
    return 1
