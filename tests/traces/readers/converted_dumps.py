"""Dumps of SGLang's recorder and responses of vLLM made by hand, converted, and what came out."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from placement.readers.convert import Conversion
from placement.traces.trace import open_trace

Array = npt.NDArray[Any]

GOLDEN = Path(__file__).parents[2] / "golden" / "readers"


def sets(seed: int, *shape: int, experts: int = 6, top_k: int = 2) -> Array:
    """Random top-k sets of the given shape."""
    return np.argsort(np.random.default_rng(seed).random((*shape, experts)), axis=-1)[..., :top_k]


def dump(path: Path, ids: list[Array], slots: Array, *, mode: int = 1, **other: Any) -> Path:
    """A per_token dump of one pass for each array [L, T, K]."""
    records = [
        {
            "forward_pass_id": number,
            "forward_mode": mode,
            "positions": list(range(one.shape[1])),
            "extend_seq_lens": [one.shape[1]],
            "topk_ids_of_layer": torch.tensor(np.ascontiguousarray(one, dtype=np.int32)),
        }
        | other
        for number, one in enumerate(ids)
    ]
    torch.save({"records": records, "last_physical_to_logical_map": torch.tensor(slots)}, path)
    return path


def ids_of(folder: Path) -> Array:
    """[L, T, K] of all tokens of a trace."""
    trace = open_trace(folder)
    return np.concatenate(
        [np.stack([block.ids_TK(layer) for layer in range(trace.model.num_layers)]) for block in trace.blocks()], axis=1
    )


def notes_of(done: Conversion) -> str:
    return "; ".join(done.notes)


LINEAR = np.arange(6)[None].repeat(2, axis=0)


def response(ids: Array, **usage: int) -> str:
    buffer = io.BytesIO()
    np.save(buffer, ids)
    text = base64.b64encode(buffer.getvalue()).decode()
    return json.dumps({"id": "q", "choices": [{"routed_experts": text}], "usage": usage})
