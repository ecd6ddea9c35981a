"""HYGON's plugin of vLLM (vllm-plugin-das): `expert_map_path` of `--eplb-config`, JSON by the class of the model.

Read in its source, `vllm_hcu/model_executor/layers/fused_moe/static_eplb.py`; the keys are those that its versions for
vLLM 0.25.1 and 0.28.1 ask for. Rows are the model's MoE layers; a draft model (MTP) has an entry of its own. Weights
are loaded straight to their slots, and the map stays: the engine stops where class, layers or counts are not its own.
"""

from __future__ import annotations

import json
from typing import Any

from placement.core.placement import Placement, check_same_slots
from placement.errors import MapError, OptionError
from placement.exporters.base import DEFAULTS, Export, ExportOptions, FileMap
from placement.exporters.engine_layers import check_several_ranks, layer_hints, main_LP
from placement.exporters.imports import json_value, whole_rows
from placement.exporters.vllm import REPLICA_CHOICE, STRATEGY

VERSION = 2
MAPS, ROWS, EXPERTS = "model_maps", "physical_to_logical_map", "num_logical_experts"


class VLLMHygon:
    name = "vllm-hygon"
    suffixes = (".json",)
    takes_load = False
    replica_choices = ("vllm-hash",)
    transport = "node"

    def export(self, placement: Placement, options: ExportOptions = DEFAULTS) -> Export:
        check_several_ranks(placement, "vLLM")
        check_same_slots(placement, "vLLM")
        model_class = options.model_class or placement.model.name
        if not model_class.isidentifier():
            raise OptionError(
                f"vLLM finds the map by the class of the model, which {model_class[:80]!r} is not; give --model-class, "
                "one of `architectures` in the model's config.json"
            )
        rows = main_LP(placement).tolist()
        entry = {
            "record_kind": "proposal",  # what its recorder calls a map that is meant to be loaded
            "model_name": placement.model.name,
            "model_class": model_class,
            "num_moe_layers": len(rows),
            EXPERTS: placement.model.num_experts,
            "num_physical_experts": placement.num_slots,
            "num_redundant_experts": placement.num_redundant,
            ROWS: rows,
        }
        document = {
            "version": VERSION,
            "format": "vllm_offline_eplb_physical_to_logical_by_model",
            MAPS: {model_class: entry},
        }
        config = (
            f'{{"expert_map_path": "FILE", "num_redundant_experts": {placement.num_redundant}, "use_async": false}}'
        )
        return Export(
            content=json.dumps(document, separators=(",", ":")).encode() + b"\n",
            hints=(
                f"start vLLM with vllm-plugin-das: --enable-expert-parallel --enable-eplb --eplb-config '{config}'; it "
                "refuses a filter of expert weights, and its newest version pipeline parallelism",
                f"redundant experts: {placement.num_redundant} a layer; tensor x data parallel size must be "
                f"{placement.num_ranks}, of {placement.num_nodes} nodes",
                REPLICA_CHOICE,
                STRATEGY,
                f"check: the map is for models of class {model_class}; vLLM stops where it runs another, or a draft "
                "model beside it that has no entry in the file",
                *layer_hints(placement, engine="vLLM", hidden=False),
            ),
        )

    def read(self, content: bytes, suffix: str) -> FileMap:
        value = json_value(content)
        maps = value.get(MAPS) if isinstance(value, dict) and "version" in value else None
        if not isinstance(maps, dict) or not all(isinstance(entry, dict) for entry in maps.values()):
            raise MapError(f"it has no version and {MAPS}, a mapping from classes of models to maps")
        if type(value["version"]) is not int or value["version"] != VERSION:
            raise MapError(f"its version is {value['version']!r:.20}; {VERSION} is the one that is read")
        if len(maps) != 1:
            raise MapError(f"{MAPS} has {len(maps)} models ({', '.join(maps)[:80]}); leave the one to import")
        ((name, entry),) = maps.items()
        rows = whole_rows(entry.get(ROWS), f"{name}: {ROWS}")
        experts = entry.get(EXPERTS)
        counts: dict[str, Any] = {
            "num_moe_layers": len(rows),
            "num_physical_experts": len(rows[0]),
            EXPERTS: experts,
            "num_redundant_experts": len(rows[0]) - experts if type(experts) is int else None,
        }
        for key, said in counts.items():
            if type(entry.get(key)) is not int or entry[key] != said:
                raise MapError(f"{name}: {key} is {entry.get(key)!r:.20}, which is not what the rows have")
        return FileMap(rows=rows, num_experts=experts)
