"""Responses of vLLM's servers with `routed_experts`, in the forms that its versions and forks give them.

One array [tokens, layers, top-k] of whole numbers a choice: the base64 of a `.npy`; {data, shape, dtype} with the
bytes as base64 (older ones as base85) and perhaps `start`, the position of the first row; or nested lists. A choice
has rows of prompt and answer; after vllm#39917 (0.21) of the answer alone, with the prompt's in `prompt_routed_experts`
of the response. The last token has no row. `usage` tells how many tokens there are, or `prompt_token_ids` and
`token_ids` do (/inference/v1/generate); a prompt that is not told is what the rows leave.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.model import MOST_LAYERS
from placement.errors import TraceError
from placement.readers.base import reading
from placement.readers.responses import ABSENT, DRAFTS, UNTOLD, WITHOUT, Remarks, number_in, responses
from placement.readers.token_ids import TokenIds
from placement.support.array_files import open_array

KEY, PROMPT_KEY = "routed_experts", "prompt_routed_experts"
FORMS = (
    "forms that are read, of whole numbers [tokens, layers, top-k]: the base64 of a .npy (vLLM 0.22 to 0.33; 0.21 with "
    "prompt_routed_experts apart), {data, shape, dtype} (prime-rl), nested lists; bring what another version writes "
    "into one of them"
)
DTYPE = re.compile(r"(torch\.)?u?int(8|16|32|64)|[<>|=]?[iu][1248]")
TYPES = {1: "<u1", 2: "<i2", 4: "<i4", 8: "<i8"}  # dtype of so many bytes an id, where none is told


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows [T, L, K] of a request, the first at position `start`.

    prompt_tokens  tokens of the prompt, None where nothing tells them
    tokens         tokens of prompt and answer, or None
    ids            what is known of their ids, or None
    """

    where: str
    name: str
    array: npt.NDArray[Any]
    start: int
    prompt_tokens: int | None
    tokens: int | None
    ids: TokenIds | None = None


def rows_in(files: list[Path], remarks: Remarks) -> Iterator[Rows]:
    """Rows of all responses, in the order of the files; none is empty. Raises TraceError on a form that is not read."""
    for where, default, response in responses(files, lambda one: isinstance(one.get("choices"), list), remarks):
        name = str(response.get("id") or response.get("request_id") or default)
        found = [rows for rows in _rows(where, name, response, remarks) if len(rows.array)]
        if not found:
            remarks.add(WITHOUT, where)
        for rows in found[:1]:
            remarks.add(ABSENT, where, min(rows.start, rows.prompt_tokens or 0))
            remarks.add(UNTOLD, where, rows.prompt_tokens is None)
        for rows in found:
            remarks.add(DRAFTS, where, 0 if rows.tokens is None else max(rows.start + len(rows.array) - rows.tokens, 0))
        yield from found


def _rows(where: str, name: str, response: dict[str, Any], remarks: Remarks) -> list[Rows]:
    """The rows that the choices share, if any, then those of each choice."""
    choices = [choice for choice in response["choices"] if isinstance(choice, dict)]
    shared_TLK = _array(where, response.get(PROMPT_KEY))
    prompt_ids = _prompt_ids(response, choices)
    prompt = _prompt_tokens(response, prompt_ids)
    if prompt is None and shared_TLK is not None:
        prompt = len(shared_TLK)
    found = []
    for index, choice in enumerate(choices):
        array = _array(where, choice.get(KEY))
        if array is None:
            continue
        answer = _answer_tokens(response, choice, prompt)
        tokens = None if prompt is None or answer is None else prompt + answer
        start = number_in(choice[KEY], "start")
        if start is None:
            start = 0 if tokens is None else max(tokens - 1 - len(array), 0)
            if prompt is not None and shared_TLK is not None and (tokens is None or len(array) < tokens - 1):
                start = max(start, prompt)
        known = prompt if prompt is not None or answer is None else max(start + len(array) + 1 - answer, 0)
        one = name if len(choices) == 1 else f"{name}/{index}"
        ids = TokenIds.of(where, prompt_ids, choice.get("token_ids"), prompt=known, answer=answer, remarks=remarks)
        rows = Rows(where=where, name=one, array=array, start=start, prompt_tokens=known, tokens=tokens, ids=ids)
        found.append(rows)
    if shared_TLK is not None and prompt is not None:
        first = max(prompt - len(shared_TLK), 0)
        until = min([prompt, *(rows.start for rows in found)])  # from here on a choice has them too
        one, ids = (found[0].name, found[0].ids) if found else (name, None)
        own_TLK = shared_TLK[: max(until - first, 0)]
        rows = Rows(where=where, name=one, array=own_TLK, start=first, prompt_tokens=prompt, tokens=None, ids=ids)
        found.insert(0, rows)
    return found


def _prompt_ids(response: dict[str, Any], choices: list[dict[str, Any]]) -> Any:
    """`prompt_token_ids` of the response, or of a choice (completions)."""
    told = [one.get("prompt_token_ids") for one in (response, *choices)]
    return next((ids for ids in told if ids is not None), None)


def _prompt_tokens(response: dict[str, Any], ids: Any) -> int | None:
    told = number_in(response.get("usage"), "prompt_tokens")
    return len(ids) if told is None and isinstance(ids, list) else told


def _answer_tokens(response: dict[str, Any], choice: dict[str, Any], prompt: int | None) -> int | None:
    ids, usage = choice.get("token_ids"), response.get("usage")
    if isinstance(ids, list):
        return len(ids)
    if len(response["choices"]) > 1:  # usage adds them up
        return None
    told, total = number_in(usage, "completion_tokens"), number_in(usage, "total_tokens")
    return max(total - prompt, 0) if told is None and total is not None and prompt is not None else told


def _array(where: str, value: Any) -> npt.NDArray[Any] | None:
    """The array that a response holds in one of the forms; None where it holds none."""
    if value is None or value == "" or value == []:
        return None
    with reading(where, FORMS):
        if isinstance(value, str):
            content = base64.b64decode(value, validate=True)
            array = open_array(io.BytesIO(content)).whole(len(content))
        elif isinstance(value, dict):
            array = _payload(value)
        else:
            array = np.array(value)
    if array.ndim != 3 or array.dtype.kind not in "iu" or array.shape[1] > MOST_LAYERS:
        raise TraceError(f"{where}: routed_experts has shape {list(array.shape)} and dtype {array.dtype}; {FORMS}")
    return array


def _payload(value: dict[str, Any]) -> npt.NDArray[Any]:
    """{data, shape, dtype}. Raises what `reading` takes."""
    shape = [one for one in value["shape"] if type(one) is int and one >= 0]
    places, text = math.prod(shape), value["data"]
    if len(shape) != len(value["shape"]) or not isinstance(text, str):
        raise ValueError(f"its shape is {value['shape']!r:.60}, its data a {type(text).__name__}")
    named = value.get("dtype")
    if named is not None and (not isinstance(named, str) or not DTYPE.fullmatch(named)):
        raise ValueError(f"its dtype is {named!r:.40}, which is no type of whole numbers")
    dtype = None if named is None else np.dtype(named.removeprefix("torch."))
    for decode in (partial(base64.b64decode, validate=True), base64.b85decode):
        try:
            data = decode(text)
        except ValueError:
            continue
        found = np.dtype(TYPES.get(len(data) // max(places, 1), "<u1")) if dtype is None else dtype
        if len(data) == places * found.itemsize:
            return np.frombuffer(data, dtype=found).reshape(shape)
    raise ValueError(f"its data are not {places} ids of shape {shape} and dtype {dtype or 'not told'}")
