"""Small solved traces for the reports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from placement import Cluster, Options, Solution, open_trace, solve
from placement.traces.format import SCHEMA, TraceManifest, id_dtype, write_manifest, write_shard

MakeSolution = Callable[..., Solution]


@pytest.fixture
def make_solution(tmp_path: Path) -> MakeSolution:
    """Solve a random trace of 6 requests; the keywords shape the model, the cluster and the call."""

    def make(
        *,
        name: str = "tiny",
        layer_ids: tuple[int, ...] = (2, 3),
        num_experts: int = 8,
        num_nodes: int = 2,
        gpus_per_node: int = 2,
        slots_per_gpu: int = 2,
        solver: str = "auto",
        holdout: float = 0.34,
    ) -> Solution:
        tokens, top_k = 240, 2
        rng = np.random.default_rng(0)
        ids_LTK = np.argsort(rng.random((len(layer_ids), tokens, num_experts)), axis=2)[:, :, :top_k]
        folder = tmp_path / f"trace{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        write_shard(
            folder / "shard-00000.safetensors",
            ids_LTK=ids_LTK.astype(id_dtype(num_experts)),
            request_T=np.arange(tokens) * 6 // tokens,
            position_T=np.arange(tokens) % (tokens // 6),
            phase_T=np.zeros(tokens),
        )
        document = {
            "schema": SCHEMA,
            "model": name,
            "layer_ids": list(layer_ids),
            "num_experts": num_experts,
            "top_k": top_k,
            "num_tokens": tokens,
            "requests": [{"id": f"r{q}"} for q in range(6)],
        }
        write_manifest(folder, TraceManifest.model_validate(document))
        cluster = Cluster(num_nodes=num_nodes, gpus_per_node=gpus_per_node, slots_per_gpu=slots_per_gpu)
        options = Options(solver=solver, work_limit=500)
        return solve(open_trace(folder), cluster, options, holdout=holdout, workers=1)

    return make
