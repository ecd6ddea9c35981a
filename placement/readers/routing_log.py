"""JSON-lines routing logs: one `{"type": "meta", ...}` line, then one line for each token and layer.

    {"type": "route", "req_id": "r0", "token_idx": 0, "layer": 3, "topk_ids": [5, 1], "topk_weights": [0.7, 0.3]}

Ids are logical. `topk_weights` may be absent. `meta` may tell `model_id`, `num_experts`, `top_k`; a second one starts a
run of its own, whose requests are others. Position is `token_idx` less the request's first; there are no phases.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from placement.errors import TraceError
from placement.readers.base import (
    BATCH_TOKENS,
    Batch,
    ReadOptions,
    Recording,
    files_of,
    head_of,
    model_name,
    reading,
    whole_number,
)
from placement.readers.json_lines import json_objects
from placement.readers.request_batches import half_weights
from placement.traces.format import PREFILL, RequestEntry

PATTERN = "*.jsonl"
MEND = "log it again"
MOST_OPEN = 500_000  # tokens that still lack a layer, held in memory

_Row = tuple[list[int], list[float] | None]


class RoutingLog:
    name = "routing-log"
    title = "JSON-lines routing log"

    def sniff(self, path: Path) -> str | None:
        files = files_of(path, PATTERN)
        head = head_of(files[0]) if files else b""
        if b'"topk_ids"' in head and b'"route"' in head:
            return f"{files[0].name} has lines of type route with topk_ids"
        return None

    def read(self, path: Path, options: ReadOptions) -> Recording:
        files = files_of(path, PATTERN)
        layers: set[int] = set()
        said: dict[str, Any] = {}
        notes: list[str] = ["phases are unknown: all is called prefill"]
        for where, line in _lines(files):
            if line.get("type") == "meta":
                said = {**line, **said}
            else:
                layers.add(whole_number(line.get("layer"), "layer", where))
        if not layers:
            raise TraceError(f"{path} has no lines of type route; {MEND}")
        experts = said.get("num_experts")
        ordered = tuple(sorted(layers))
        return Recording(
            model=str(said.get("model_id") or model_name(path)),
            layer_ids=ordered,
            num_experts=None if experts is None else whole_number(experts, "num_experts", str(path), least=1),
            batches=lambda: _batches(files, ordered, notes),
            notes=notes,
        )


def _lines(files: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in files:
        for where, line in json_objects(path):
            if not isinstance(line, dict):
                raise TraceError(f"{where} is no line of a routing log; {MEND}")
            if line.get("type") in ("meta", "route"):
                yield where, line


def _batches(files: list[Path], layer_ids: tuple[int, ...], notes: list[str]) -> Iterator[Batch]:
    """One batch for what one request logged in a row."""
    open_tokens: dict[tuple[str, int], dict[int, _Row]] = {}
    firsts: dict[str, int] = {}
    run, seen_meta, owner, where = 0, False, "", ""
    waiting: list[tuple[int, list[_Row]]] = []
    for where, line in _lines(files):
        if line["type"] == "meta":
            run, seen_meta = run + seen_meta, True
            continue
        name = f"{line.get('req_id')}" + (f"#{run}" if run else "")
        if waiting and (name != owner or len(waiting) == BATCH_TOKENS):
            yield _batch(where, owner, waiting)
            waiting = []
        owner = name
        token = whole_number(line.get("token_idx"), "token_idx", where)
        first = firsts.setdefault(name, token)
        if token < first:
            raise TraceError(f"{where}: token_idx {token} of request {name} is before its first, {first}; {MEND}")
        rows, layer = open_tokens.setdefault((name, token), {}), line["layer"]
        if layer in rows:
            raise TraceError(f"{where} repeats layer {layer} of token {token} of {name}; give one log of one run")
        rows[layer] = _row(line, where)
        if len(rows) == len(layer_ids):
            waiting.append((token - first, [rows[one] for one in layer_ids]))
            del open_tokens[name, token]
        elif len(open_tokens) > MOST_OPEN:
            raise TraceError(f"{where}: {MOST_OPEN:,} tokens lack layers so far; log all layers of a token together")
    if waiting:
        yield _batch(where, owner, waiting)
    if open_tokens:
        note = f"{len(open_tokens):,} tokens lack some of the layers and were left out"
        if note not in notes:
            notes.append(note)


def _row(line: dict[str, Any], where: str) -> _Row:
    ids, weights = line.get("topk_ids"), line.get("topk_weights")
    if not isinstance(ids, list) or not ids or not all(type(one) is int and abs(one) < 2**31 for one in ids):
        raise TraceError(f"{where}: topk_ids is {ids!r:.60}; a list of whole numbers is needed; {MEND}")
    if weights is None:
        return ids, None
    if not isinstance(weights, list) or len(weights) != len(ids):
        raise TraceError(f"{where}: topk_weights is {weights!r:.60}; {len(ids)} numbers are needed; {MEND}")
    return ids, weights


def _batch(where: str, owner: str, waiting: list[tuple[int, list[_Row]]]) -> Batch:
    count = len(waiting)
    width = max(len(ids) for _, rows in waiting for ids, _ in rows)
    if any(len(ids) != width for _, rows in waiting for ids, _ in rows):
        raise TraceError(f"{where}: sets of request {owner} have different numbers of experts, up to {width}; {MEND}")
    weighted = all(weights is not None for _, rows in waiting for _, weights in rows)
    with reading(where, MEND):
        ids_TLK = np.array([[ids for ids, _ in rows] for _, rows in waiting], dtype=np.int32)
        weights_TLK = np.array([[w for _, w in rows] for _, rows in waiting], dtype=np.float64) if weighted else None
        weights_LTK = None if weights_TLK is None else half_weights(weights_TLK)
    return Batch(
        where=where,
        ids_LTK=np.ascontiguousarray(ids_TLK.transpose(1, 0, 2)),
        requests=(RequestEntry(id=owner),),
        request_T=np.zeros(count, dtype=np.int32),
        position_T=np.array([position for position, _ in waiting], dtype=np.int32),
        phase_T=np.full(count, PREFILL, dtype=np.uint8),
        weights_LTK=weights_LTK,
    )
