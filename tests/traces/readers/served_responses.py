"""Responses of vLLM and SGLang with routed experts, and what is read of them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.readers.base import ReadOptions
from placement.readers.convert import Conversion, convert
from placement.traces.trace import open_trace

Array = npt.NDArray[Any]

LAYERS, EXPERTS, TOP_K = 3, 12, 4

PROMPT, ANSWER = 7, 5

ROWS = PROMPT + ANSWER - 1  # the last token has none


def routed(seed: int = 0, rows: int = ROWS) -> Array:
    """Sets [rows, L, K] of different experts, of which every expert has its turn."""
    return np.argsort(np.random.default_rng(seed).random((rows, LAYERS, EXPERTS)), axis=2)[:, :, :TOP_K]


def npy(array: Array) -> str:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return base64.b64encode(buffer.getvalue()).decode()


def usage(prompt: int = PROMPT, answer: int = ANSWER) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def vllm(name: str, value: Any, **other: Any) -> dict[str, Any]:
    """A response of the OpenAI server; `other` replaces keys of it, and None takes them away."""
    choice = {"index": 0, "text": "", "finish_reason": "stop", "routed_experts": value}
    found = {"id": name, "choices": [choice], "usage": usage()} | other
    return {key: value for key, value in found.items() if value is not None}


def sglang(name: str, array: Array | None, **other: Any) -> dict[str, Any]:
    meta = {"id": name, "prompt_tokens": PROMPT, "completion_tokens": ANSWER}
    meta["routed_experts"] = None if array is None else base64.b64encode(array.tobytes()).decode()
    return {"text": "", "meta_info": meta | other}


def logged(folder: Path, *documents: Any, name: str = "responses.jsonl") -> Path:
    """A file with a line for each document; text is written as it is."""
    lines = [one if isinstance(one, str) else json.dumps(one) for one in documents]
    (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return folder / name


def read(path: Path, **options: Any) -> tuple[Conversion, dict[str, list[tuple[int, int, Any]]]]:
    """The conversion, and (position, phase, sets) of every token of each request."""
    done = convert(path, path.parent / f"out-{len(list(path.parent.iterdir()))}", options=ReadOptions(**options))
    trace = open_trace(done.output)
    found: dict[str, list[tuple[int, int, Any]]] = {one.id: [] for one in trace.requests}
    for block in trace.blocks():
        ids_TLK = np.stack([block.ids_TK(layer) for layer in range(trace.model.num_layers)], axis=1)
        columns = (block.request_T, block.column_T("position"), block.column_T("phase"), ids_TLK)
        for request, *token in zip(*(column.tolist() for column in columns), strict=True):
            found[trace.requests[request].id].append((token[0], token[1], token[2]))
    return done, found


def tokens(array: Array, prompt: int = PROMPT, start: int = 0) -> list[tuple[int, int, Any]]:
    return [(at, int(at >= prompt), ids.tolist()) for at, ids in enumerate(array, start=start)]


def payload(array: Array, encode: Callable[[bytes], bytes] = base64.b64encode, **other: Any) -> dict[str, Any]:
    return {"data": encode(array.tobytes()).decode(), "shape": list(array.shape)} | other


ABORTED = vllm("x", None, choices=[{"index": 0, "finish_reason": "abort", "routed_experts": None}])
