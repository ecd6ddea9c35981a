"""How an engine is told the data-parallel rank on which a request is to run.

vLLM 0.33 `entrypoints/generate/base/serving.py:_get_data_parallel_rank`; SGLang 0.5.23
`srt/entrypoints/openai/protocol.py:PDRoutingFields`; Dynamo 1.6.1 `dynamo/frontend/sglang_processor.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

RANK_HEADER = b"x-data-parallel-rank"

Headers = tuple[tuple[bytes, bytes], ...]
HandedOver = tuple[bytes, Headers]


class Door:
    """How one engine is told; `hand_over` gives the body and the headers to add, None where the client has chosen.

    Args:
        instances: Dynamo's ids of the workers, one, or one for each rank; empty: the ranks alone say which.
    """

    def __init__(self, instances: tuple[int, ...] = ()) -> None:
        self.instances = instances

    def hand_over(
        self, body: bytes, asked: Mapping[str, Any], headers: Mapping[bytes, bytes], rank: int
    ) -> HandedOver | None:
        """Raises ValueError where the body cannot be added to."""
        raise NotImplementedError


class VLLM(Door):
    """vLLM: a header; the body stays as it is."""

    def hand_over(
        self, body: bytes, asked: Mapping[str, Any], headers: Mapping[bytes, bytes], rank: int
    ) -> HandedOver | None:
        return None if RANK_HEADER in headers else (body, ((RANK_HEADER, b"%d" % rank),))


class SGLang(Door):
    """SGLang: a field of the body, in its native and its OpenAI forms."""

    fields: tuple[str, ...] = ("routed_dp_rank",)
    chosen: tuple[str, ...] = ("routed_dp_rank", "data_parallel_rank", "disagg_prefill_dp_rank")

    def hand_over(
        self, body: bytes, asked: Mapping[str, Any], headers: Mapping[bytes, bytes], rank: int
    ) -> HandedOver | None:
        if RANK_HEADER in headers or any(asked.get(field) is not None for field in self.chosen):
            return None
        if any(field in asked for field in self.fields):  # null, as no rank is: the key must not come twice
            return _rewritten(asked, {field: rank for field in self.fields}), ()
        return with_keys(body, {field: rank for field in self.fields}), ()


class SGLangDisaggregated(SGLang):
    """SGLang with prefill servers of as many ranks: the same rank of both, and decode is told where the prefill is."""

    fields = ("routed_dp_rank", "disagg_prefill_dp_rank")


class Dynamo(Door):
    """Dynamo: fields of `nvext`, where other fields of the client may be."""

    chosen = ("dp_rank", "backend_instance_id", "decode_worker_id", "prefill_worker_id", "prefill_dp_rank")

    def hand_over(
        self, body: bytes, asked: Mapping[str, Any], headers: Mapping[bytes, bytes], rank: int
    ) -> HandedOver | None:
        told: dict[str, Any] = {"dp_rank": rank}
        if self.instances:
            told = {"backend_instance_id": self.instances[rank % len(self.instances)]} | told
        given = asked.get("nvext")
        if given is None and "nvext" not in asked:
            return with_keys(body, {"nvext": told}), ()
        if given is not None and not isinstance(given, dict):
            raise ValueError("nvext is no object")
        if given is not None and any(given.get(field) is not None for field in self.chosen):
            return None
        return _rewritten(asked, {"nvext": (given or {}) | told}), ()


DOORS: dict[str, type[Door]] = {
    "vllm": VLLM,
    "sglang": SGLang,
    "sglang-disagg": SGLangDisaggregated,
    "dynamo": Dynamo,
}


def with_keys(body: bytes, keys: Mapping[str, Any]) -> bytes:
    """A JSON object, with keys that it has not at its beginning; every other byte stays. Raises ValueError."""
    found = OBJECT.match(body)
    if found is None:
        raise ValueError("the body does not begin as a JSON object in UTF-8 does")
    added = json.dumps(keys, separators=(",", ":"))[1:-1].encode()
    return b"{" + added + (b"" if found["end"] else b",") + body[found.end("begin") :]


def _rewritten(asked: Mapping[str, Any], keys: Mapping[str, Any]) -> bytes:
    """The body written again: for the few whose keys are there already. Raises ValueError."""
    return json.dumps({**asked, **keys}, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


OBJECT = re.compile(rb"(?P<begin>[ \t\r\n]*\{)[ \t\r\n]*(?P<end>\}?)")
