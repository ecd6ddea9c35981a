"""Targets: placements, groupings, clusters, the maps of engines."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import numpy as np
from fuzz_base import TESTS, Seeds, Target, folder, refusing

from placement.core.migration import map_digest
from placement.core.placement import Placement
from placement.documents.cluster_yaml import cluster_from_yaml
from placement.documents.placement import PlacementFile, load_placement
from placement.exporters import get_exporter, get_importer
from placement.exporters.base import ExportOptions
from placement.exporters.imports import imported
from placement.grouping.grouping_file import load_grouping
from placement.testing.exporters import exported, small_placement


def map_bytes(placement: Placement | None = None) -> bytes:
    loose = {"version": "0", "seed": 1, "options": {}}
    return PlacementFile.of(placement or small_placement(), provenance=loose).content()


def placement_file() -> Target:
    def run(data: bytes) -> None:
        with folder() as base, refusing():
            (base / "p.json").write_bytes(data)
            placement, file = load_placement(base / "p.json")
            file.described_cluster()
            map_digest(placement)
            for name in (
                "sglang",
                "vllm",
                "tensorrt-llm",
                "lmdeploy",
                "omni-infer",
                "deepseek-eplb",
                "vllm-ascend",
                "vllm-hygon",
            ):
                with refusing():
                    get_exporter(name).export(placement, ExportOptions())

    def seeds() -> Seeds:
        whole = json.loads(map_bytes())
        whole["provenance"]["cluster"] = whole["cluster"] | {
            "inter_gbps": 400.0,
            "intra_gbps": 3600.0,
            "gpu_tflops": 400.0,
            "gpu_speeds": [1.0, 1.0, 2.0, 2.0],
            "topology": {"levels": [{"name": "rack", "nodes": 1, "gbps": 100.0}], "node_gbps": [], "rank_cost": []},
            "expert_bytes": 1,
            "dispatch_bytes": 1,
            "combine_bytes": 1,
        }
        whole["model"] |= {"num_groups": 2, "num_hidden_layers": 3}
        return {"plain": map_bytes(), "cluster": json.dumps(whole).encode()}

    return Target(run=run, seeds=seeds, kind="json")


TABLES = base64.b64encode(zlib.compress(np.ones((3, 4), dtype="<f2").tobytes())).decode()
NEW_PARTS = {
    "counts_scale": 1.0,
    "prefix_sends": 2.0,
    "prices": {"request_tokens": 9.0, "horizon": 10.0, "tolerance": 0.02, "scores": [[0.1, 0.0], [0.0, 0.2]]},
    "predictor": {
        "buckets": 4,
        "mean": [0.0, 0.1],
        "worth_tokens": 2.0,
        "least_worth_tokens": 1.0,
        "tables": TABLES,
    },
}


def grouping_document() -> dict[str, Any]:
    return {
        "schema": "expert-grouping/1",
        "model": {"name": "small", "layer_ids": [0, 1], "num_experts": 6, "top_k": 2, "num_groups": None},
        "num_nodes": 2,
        "placement_hash": "sha256:0",
        "home_from": "prefill",
        "groups": [{"node": 0, "requests": 1, "tokens": 3, "domains": {"x": 1}}],
        "domains": [],
        "balance": {"tolerance": 0.1, "kept": True, "train": 1.0, "held_out": None, "routed": None},
        "cost": {"sends_per_token": 1.0, "bound": 0.5, "gap": 0.5},
        "gains": [],
        "without_tokens": ["b"],
        "provenance": {"version": "0"},
        "router": {
            "num_layers": 2,
            "top_k": 2,
            "layers": [1],
            "keeps": 1.0,
            "band": 0.01,
            "slack_tokens": 5.0,
            "saved": [[[0.5, 0.25]] * 6],
        },
        "homes": {"a": 0, "c": 1},
    }


def grouping_file() -> Target:
    def run(data: bytes) -> None:
        with folder() as base, refusing():
            (base / "g.json").write_bytes(data)
            file = load_grouping(base / "g.json")
            router = file.router.router()
            if router.num_layers * router.num_experts < 1 << 16:
                router.assign(np.ones((router.num_layers, router.num_experts), dtype=np.int64))
                router.assign(prompt=[1, 2, 3], load=[0.0] * router.num_nodes)
            file.check_fits(small_placement())

    def seeds() -> dict[str, bytes]:
        old = grouping_document()
        new = old | {"schema": "expert-grouping/2", "router": old["router"] | NEW_PARTS}
        return {"sound": json.dumps(old).encode(), "of version 2": json.dumps(new).encode()}

    return Target(run=run, seeds=seeds, kind="json")


def cluster_file() -> Target:
    def run(data: bytes) -> None:
        with folder() as base, refusing():
            (base / "c.yaml").write_bytes(data)
            cluster = cluster_from_yaml(base / "c.yaml", 8)
            cluster.speed_G()
            where = cluster.num_nodes, cluster.gpus_per_node, cluster.inter_gbps
            cluster.topology.node_cost_NN(*where)
            cluster.topology.rank_cost_NG(*where)

    def seeds() -> Seeds:
        racks = (
            "num_nodes: 4\ngpus_per_node: 2\nredundant_experts: 8\ninter_gbps: 400.0\n"
            "gpu_speeds: [1.0, 1, 1, 1, 2, 2, 2, 2]\n"
            "topology:\n  levels:\n  - {name: rack, nodes: 2, gbps: 100.0}\n  node_gbps: [400.0, 400.0, 200.0, 400.0]\n"
        )
        matrix = "num_nodes: 2\ngpus_per_node: 1\ntopology: {rank_cost: [[0.0, 1.0], [1.0, 0.0]]}\nexpert_bytes: 5\n"
        return {"racks": racks.encode(), "matrix": matrix.encode(), "small": b"num_nodes: 2\nslots_per_gpu: 1\n"}

    return Target(run=run, seeds=seeds, kind="yaml")


def _uneven() -> bytes:
    """A second layer with fewer experts a device."""
    devices = [{"device_id": rank, "device_expert": [rank, rank + 4, rank + 1]} for rank in range(4)]
    fewer = [one | {"device_expert": one["device_expert"][:2]} for one in devices]
    layers = [
        {"layer_id": index, "device_count": 4, "device_list": listed} for index, listed in enumerate((devices, fewer))
    ]
    return json.dumps({"moe_layer_count": 2, "layer_list": layers}).encode()


FURTHER: dict[str, Seeds] = {
    "sglang.pt": {"dump": next((TESTS / "golden" / "readers" / "sglang" / "per-pass").glob("*_0.pt")).read_bytes()},
    "vllm-ascend.json": {"uneven": _uneven()},
}


def engine_map(name: str, suffix: str) -> Target:
    importer = get_importer(name)

    def run(data: bytes) -> None:
        for layers, hidden in (((0, 1), 2), (None, None)):
            with refusing():
                file = importer.read(data, suffix)
                placement = imported(
                    file,
                    name="m",
                    top_k=2,
                    num_nodes=2,
                    gpus_per_node=2 if file.num_ranks is None else None,
                    layer_ids=layers,
                    num_hidden_layers=hidden,
                )
                PlacementFile.of(placement).content()

    def seeds() -> Seeds:
        return {"sound": exported(get_exporter(name), small_placement(), suffix).content} | FURTHER.get(
            name + suffix, {}
        )

    kinds = {".json": "json", ".npy": "npy", ".yaml": "yaml", ".safetensors": "safetensors"}
    return Target(run=run, seeds=seeds, kind=kinds.get(suffix, "zip"))
