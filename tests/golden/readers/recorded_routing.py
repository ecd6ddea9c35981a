"""The routing that every format records, and what must come out of a recording of it.

Three hidden layers of which the first is dense, six experts, top-2, requests a, b and c with 8, 6 and 3 tokens of
which 5, 4 and 3 are of the prompt.
"""

from __future__ import annotations

import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent

REQUESTS = {"a": (5, 3), "b": (4, 2), "c": (3, 0)}  # tokens of the prompt, of the answer

LAYERS, EXPERTS, TOP_K = (1, 2), 6, 2

SLOTS = [[0, 1, 2, 3, 4, 5, 0, 1], [0, 1, 2, 3, 4, 5, 0, 1], [5, 4, 3, 2, 1, 0, 5, 4]]  # expert of each slot

DUMMIES = 16

FIRST_ID = {"a": 1000, "b": 2000, "c": 3000}  # of the tokens of a request; the others follow

rng = np.random.default_rng(7)

IDS = {
    name: np.argsort(rng.random((sum(lengths), len(LAYERS), EXPERTS)), axis=2)[:, :, :TOP_K]
    for name, lengths in REQUESTS.items()
}

WEIGHTS = {name: np.sort(rng.random(ids.shape), axis=2)[:, :, ::-1].astype(np.float32) for name, ids in IDS.items()}


def token(name: str, position: int) -> dict[str, Any]:
    return {"position": position, "phase": int(position >= REQUESTS[name][0]), "ids": IDS[name][position].tolist()}


def expect(case: str, requests: dict[str, list[dict[str, Any]]], model: str, options: Any = None, **more: Any) -> None:
    """Tokens of every request by its name in the trace."""
    document = {
        "model": {"name": model, "layer_ids": LAYERS, "num_experts": EXPERTS, "top_k": TOP_K},
        "options": options or {},
        "requests": requests,
        **more,
    }
    (HERE / f"{case}.json").write_text(json.dumps(document) + "\n")


def expect_counts(case: str, counts: np.ndarray, model: str, options: Any = None, **more: Any) -> None:
    expect(case, {}, model, options, counts=counts.tolist(), **more)


def folder(case: str) -> Path:
    path = HERE / case
    path.mkdir(parents=True, exist_ok=True)
    return path


def tokens_of(name: str, *, phases: bool = True, ids: bool = False) -> list[dict[str, Any]]:
    """What must come out of a request; with the ids of its tokens where they were recorded."""
    found = [token(name, position) for position in range(sum(REQUESTS[name]))]
    found = [one | {"token": FIRST_ID[name] + one["position"]} for one in found] if ids else found
    return found if phases else [one | {"phase": 0} for one in found]


def lists_of(name: str) -> tuple[list[int], list[int]]:
    """Ids of the prompt, and of the answer, whose last token has no row."""
    prompt, answer = REQUESTS[name]
    ids = list(range(FIRST_ID[name], FIRST_ID[name] + prompt + answer + 1))
    return ids[:prompt], ids[prompt:]


def hidden(name: str) -> np.ndarray:
    """[T, hidden layers, K] with a dense layer's zeros."""
    ids = IDS[name]
    return np.concatenate([np.zeros_like(ids[:, :1]), ids], axis=1)


def total_counts() -> np.ndarray:
    count = np.zeros((len(LAYERS), EXPERTS), dtype=np.int64)
    for ids in IDS.values():
        for layer in range(len(LAYERS)):
            np.add.at(count[layer], ids[:, layer].reshape(-1), 1)
    return count


# passes of the server: (mode of SGLang, [(request, first token, tokens)])
PASSES = [
    (1, [("a", 0, 5), ("b", 0, 4)]),
    (2, [("a", 5, 1), ("b", 4, 1)]),
    (1, [("c", 0, 3)]),
    (2, [("a", 6, 1), ("b", 5, 1)]),
    (2, [("a", 7, 1)]),
]


def pass_counts() -> np.ndarray:
    counts = np.zeros((len(PASSES), len(LAYERS), EXPERTS), dtype=np.int64)
    for number, (_, parts) in enumerate(PASSES):
        for name, first, size in parts:
            for layer in range(len(LAYERS)):
                np.add.at(counts[number, layer], IDS[name][first : first + size, layer].reshape(-1), 1)
    return counts


def slots_of(experts: np.ndarray, layer: int, which: np.random.Generator) -> np.ndarray:
    """A slot of every expert, any of its replicas."""
    pick = [[slot for slot, held in enumerate(SLOTS[layer]) if held == expert] for expert in range(EXPERTS)]
    flat = [pick[expert][which.integers(len(pick[expert]))] for expert in experts.reshape(-1).tolist()]
    return np.array(flat).reshape(experts.shape)


def npy_text(array: np.ndarray) -> str:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return base64.b64encode(buffer.getvalue()).decode()
