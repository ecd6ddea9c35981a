"""Traces with a planted truth: which pairs of experts tokens visit, by phase and domain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from placement.traces.format import SCHEMA, TraceManifest, id_dtype, write_manifest, write_shard
from placement.traces.trace import Trace, open_trace

Pairs = Sequence[tuple[int, int]]

NEAR: Pairs = ((0, 1), (2, 3), (4, 5), (6, 7))  # on one of 4 nodes when experts are in order
FAR: Pairs = ((0, 4), (1, 5), (2, 6), (3, 7))
OTHER: Pairs = ((0, 6), (1, 7), (2, 4), (3, 5))


def plant(tmp_path: Path, parts: Sequence[tuple[str | None, Pairs, Pairs]], requests: int = 24) -> Trace:
    """`parts` are (domain, pairs of prefill, pairs of decode): requests of 40 tokens each, in two layers."""
    rng = np.random.default_rng(0)
    rows, phases, entries = [], [], []
    for domain, *by_phase in parts:
        for q in range(requests):
            entries.append({"id": f"{domain} {q}"} | ({} if domain is None else {"domain": domain}))
            for phase, pairs in enumerate(by_phase):
                chosen = rng.choice(len(pairs), 20)
                rows.append(np.array(pairs)[chosen])
                phases.append(np.full(20, phase))
    ids_TK = np.concatenate(rows)
    folder = tmp_path / f"planted{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    tokens = len(ids_TK)
    write_shard(
        folder / "shard-00000.safetensors",
        ids_LTK=np.stack([ids_TK, ids_TK]).astype(id_dtype(8)),
        request_T=np.arange(tokens) // 40,
        position_T=np.arange(tokens) % 40,
        phase_T=np.concatenate(phases),
    )
    document = {
        "schema": SCHEMA,
        "model": "planted",
        "layer_ids": [3, 4],
        "num_experts": 8,
        "top_k": 2,
        "num_tokens": tokens,
        "requests": entries,
    }
    write_manifest(folder, TraceManifest.model_validate(document))
    return open_trace(folder)
