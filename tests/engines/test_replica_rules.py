"""The engines' own functions, replayed token by token, send and serve what `evaluate` tells under the engine's rule.

On maps of 32 experts with 8 redundant ones, top-4, on 4 nodes of 2 GPUs, two layers of four: every token is on every
rank in turn. vLLM's rows do not know the rank, so there each rank has the tokens in an order of its own.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from placement import Cluster, Evaluation, Model, Placement, Trace, evaluate, open_trace
from placement.exporters import get_exporter
from placement.exporters.base import ExportOptions

pytestmark = pytest.mark.engines
EXPERTS, TOP_K, TOKENS = 32, 4, 12_000
CLUSTER = Cluster.fit(EXPERTS, num_nodes=4, gpus_per_node=2, redundant_experts=8)
SHAPE = (EXPERTS, 8, 4, 2)
MODEL = Model(name="m", layer_ids=(1, 3), num_experts=EXPERTS, top_k=TOP_K, num_hidden_layers=4)
Slots = np.ndarray[Any, np.dtype[np.int64]]  # [T, K]


@pytest.fixture(params=["popular", "any"])
def placement(request: pytest.FixtureRequest) -> Placement:
    """Copies of the experts that the sets like most, or of any; no rank holds an expert twice."""
    rng, rows = np.random.default_rng(3), []
    while len(rows) < 2:
        more = np.arange(8) // 2 * 3 if request.param == "popular" else rng.integers(0, EXPERTS, 8)
        row = rng.permutation(np.concatenate([np.arange(EXPERTS), more]))
        if all(len(set(held)) == len(held) for held in row.reshape(8, 5).tolist()):
            rows.append(row)
    return Placement(model=MODEL, **CLUSTER.sizes(), phy2log_LP=np.array(rows, dtype=np.int32))


@pytest.fixture
def trace(write_trace: Any, tmp_path: Path) -> Trace:
    """Sets of experts that are unlike in popularity and go together."""
    rng = np.random.default_rng(5)
    like_E = np.where(np.arange(EXPERTS) % 3 == 0, 1.5, 0.0) + rng.normal(0, 0.7, EXPERTS)
    group_TE = (np.arange(EXPERTS) // 4 == rng.integers(0, 8, TOKENS)[:, None]) * 1.5
    score_LTE = like_E + group_TE + rng.gumbel(size=(2, TOKENS, EXPERTS))
    ids_LTK = np.argsort(-score_LTE, axis=2)[:, :, :TOP_K]
    write_trace(tmp_path / "trace", ids_LTK=ids_LTK, num_experts=EXPERTS, layer_ids=(1, 3), num_hidden_layers=4)
    return open_trace(tmp_path / "trace")


def compare(
    trace: Trace, placement: Placement, rule: str, serve: Callable[[int, int, Slots], Slots], most: float
) -> None:
    """`serve(layer, rank, ids_TK)` is what the engine does; figures may be off by the part `most`."""
    told: Evaluation = evaluate(trace, [placement], cluster=CLUSTER, replica_choice=rule)[0]
    blocks = list(trace.blocks())
    ids_LTK = np.array([np.concatenate([block.ids_TK(layer) for block in blocks]) for layer in range(2)], np.int64)
    load_LG, sends_L, copies_L = np.zeros((2, 8)), np.zeros(2), np.zeros(2)
    for layer, rank in np.ndindex(2, 8):
        slot_TK = serve(layer, rank, ids_LTK[layer])
        assert (placement.phy2log_LP[layer][slot_TK] == ids_LTK[layer]).all()
        rank_TK = slot_TK // CLUSTER.slots_per_gpu
        load_LG[layer] += np.bincount(rank_TK.ravel(), minlength=8) / 8
        here_TG = (rank_TK[:, :, None] == np.arange(8)).any(axis=1)
        far_G = np.arange(8) // 2 != rank // 2
        copies_L[layer] += here_TG[:, far_G].sum() / 8 / TOKENS
        sends_L[layer] += here_TG.reshape(-1, 4, 2).any(axis=2)[:, far_G[::2]].sum() / 8 / TOKENS
    np.testing.assert_allclose(told.node_sends_L.mean(), sends_L.mean(), rtol=most)
    np.testing.assert_allclose(told.rank_sends_L.mean(), copies_L.mean(), rtol=most)
    np.testing.assert_allclose(told.load_LG(), load_LG, rtol=4 * most)
    uneven_L = load_LG.max(axis=1) / load_LG.mean(axis=1)
    np.testing.assert_allclose(told.rank_imbalance_L().mean(), uneven_L.mean(), rtol=most)


def test_sglang_static(trace: Trace, placement: Placement, sglang_metadata: Any, sglang_map: Path) -> None:
    """The table of every rank, from the file that we export."""
    tables = [sglang_metadata(sglang_map, rank=rank, shape=SHAPE) for rank in range(8)]

    def serve(layer: int, rank: int, ids_TK: Slots) -> Slots:
        info = SimpleNamespace(
            partial_logical_to_rank_dispatch_physical_map=tables[rank].logical_to_rank_dispatch_physical_map[
                MODEL.layer_ids[layer]
            ]
        )
        return _dispatched("static", ids_TK, info)

    compare(trace, placement, "sglang-static", serve, 1e-9)


def test_sglang_dynamic(trace: Trace, placement: Placement, sglang_metadata: Any, sglang_map: Path) -> None:
    """Its random draws, from the nearest copies."""
    import torch

    torch.manual_seed(0)
    ranks = [sglang_metadata(sglang_map, rank=rank, shape=SHAPE, algorithm="dynamic") for rank in range(8)]

    def serve(layer: int, rank: int, ids_TK: Slots) -> Slots:
        row = MODEL.layer_ids[layer]
        info = SimpleNamespace(
            partial_logical_to_all_physical_map=ranks[rank].logical_to_all_physical_map[row],
            partial_logical_to_all_physical_map_num_valid=ranks[rank].logical_to_all_physical_map_num_valid[row],
            rank_invariant=False,
        )
        return _dispatched("dynamic", ids_TK, info)

    compare(trace, placement, "sglang-dynamic", serve, 2e-3)


def _dispatched(algorithm: str, ids_TK: Slots, info: Any) -> Slots:
    """SGLang's own function on the ids of a batch."""
    import torch

    module = importlib.import_module("sglang.srt.eplb.expert_location_dispatch")
    served = getattr(module, f"_topk_ids_logical_to_physical_{algorithm}")(torch.from_numpy(ids_TK), info)
    return np.asarray(served.numpy())


@pytest.fixture
def sglang_map(placement: Placement, tmp_path: Path) -> Path:
    path = tmp_path / "map.json"
    path.write_bytes(get_exporter("sglang").export(placement, ExportOptions(suffix=".json")).content)
    return path


def test_vllm_ascend(
    trace: Trace,
    placement: Placement,
    import_engine: Callable[..., Callable[[str], ModuleType]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The table of every rank, from the file that we export."""
    import torch

    name = "vllm_ascend.eplb.core.eplb_utils"
    import_engine("vllm")
    utils = import_engine("vllm_ascend", name)(name)
    monkeypatch.setattr(torch.Tensor, "npu", lambda self: self, raising=False)
    path = tmp_path / "map.json"
    path.write_bytes(get_exporter("vllm-ascend").export(placement).content)
    config = SimpleNamespace(expert_map_path=str(path), dynamic_eplb=False, num_redundant_experts=8)

    def serve(layer: int, rank: int, ids_TK: Slots) -> Slots:
        moe = SimpleNamespace(num_experts=EXPERTS, ep_size=8, ep_rank=rank)
        engine_TK = utils.init_eplb_config(config, layer, moe)[2].numpy()[ids_TK]
        return _slots_of(json.loads(path.read_text()), layer, placement, engine_TK)

    compare(trace, placement, "ascend-rank", serve, 1e-9)


def _slots_of(content: Any, layer: int, placement: Placement, engine_TK: Slots) -> Slots:
    """Our slots of the engine's, which may have the experts of a rank in another order."""
    devices = content["layer_list"][layer]["device_list"]
    held = [expert for device in devices for expert in device["device_expert"]]
    row = placement.phy2log_LP[layer].reshape(8, 5)
    ours = [5 * (p // 5) + int(np.flatnonzero(row[p // 5] == expert)[0]) for p, expert in enumerate(held)]
    return np.asarray(ours)[engine_TK]


def test_vllm(trace: Trace, placement: Placement, import_engine: Callable[..., Callable[[str], ModuleType]]) -> None:
    """Its kernel on its tables; a batch is all tokens, in another order for every rank."""
    import torch
    from triton_on_torch import Pointer, language, triton

    router, state = "vllm.model_executor.layers.fused_moe.router.base_router", "vllm.distributed.eplb.eplb_state"
    load = import_engine("vllm", router, state)
    load("vllm.triton_utils").triton, load("vllm.triton_utils").tl = triton, language
    kernel = load(router)._eplb_map_and_record_i32_kernel
    maps = torch.from_numpy(placement.engine_LP().astype(np.int64))
    slots_LER, counts_LE = load(state).compute_logical_maps(maps, EXPERTS)

    def serve(layer: int, rank: int, ids_TK: Slots) -> Slots:
        order = np.random.default_rng(rank).permutation(TOKENS)
        served = torch.empty(TOKENS * TOP_K, dtype=torch.int64)
        ids_X, load_P = torch.from_numpy(ids_TK[order].ravel()), torch.zeros(CLUSTER.num_slots, dtype=torch.int64)
        inputs = (ids_X, counts_LE[layer], slots_LER[layer].ravel(), served, load_P, torch.ones(1), torch.zeros(1))
        sizes = (EXPERTS, slots_LER.shape[2], CLUSTER.num_slots, len(ids_X), TOP_K)
        kernel(*(Pointer(tensor) for tensor in inputs), *sizes, HAS_NUM_UNPADDED=False, BLOCK_SIZE=len(ids_X))
        slot_TK = np.empty_like(ids_TK)
        slot_TK[order] = served.numpy().reshape(ids_TK.shape)
        assert load_P.tolist() == np.bincount(slot_TK.ravel(), minlength=CLUSTER.num_slots).tolist()
        return slot_TK

    compare(trace, placement, "vllm-hash", serve, 2e-3)
