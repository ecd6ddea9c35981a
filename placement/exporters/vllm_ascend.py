"""vLLM Ascend: `eplb_config.expert_map_path`, JSON by layer and device (vllm-ascend 0.23.0, eplb/core/eplb_utils.py).

Layers are MoE layers only, MTP layers after them. The engine reads lists by their position, whatever `layer_id` and
`device_id` say; where an expert is twice on a device or on none, it makes a broken table without a word.
"""

from __future__ import annotations

import json
from typing import Any

from placement.core.placement import Placement, told_slots
from placement.errors import MapError
from placement.exporters.base import DEFAULTS, Export, ExportOptions, FileMap
from placement.exporters.engine_layers import check_once, check_several_ranks, redundant_told
from placement.exporters.imports import check_even_ranks, json_value, only_keys, whole_rows


class VLLMAscend:
    name = "vllm-ascend"
    suffixes = (".json",)
    takes_load = False
    replica_choices = ("ascend-rank",)
    transport = "assignment"

    def export(self, placement: Placement, options: ExportOptions = DEFAULTS) -> Export:
        check_several_ranks(placement, "vLLM Ascend")
        check_once(placement, "vLLM Ascend would make a broken table of them without a word")
        held_LGS = placement.engine_LP().reshape(placement.model.num_layers, placement.num_ranks, -1)
        layers = [
            {
                "layer_id": index,
                "device_count": placement.num_ranks,
                "device_list": [
                    {"device_id": rank, "device_expert": held} for rank, held in enumerate(held_GS[:, :slots].tolist())
                ],
            }
            for index, (held_GS, slots) in enumerate(zip(held_LGS, placement.slots_L, strict=True))
        ]
        uneven: tuple[str, ...] = ()
        if told_slots(placement):
            uneven = ("check: layers differ in slots, which the engine takes from the file layer by layer",)
        document = {"moe_layer_count": len(layers), "layer_list": layers}
        config = f'{{"expert_map_path": "FILE", "num_redundant_experts": {placement.num_redundant}}}'
        return Export(
            content=json.dumps(document, separators=(",", ":")).encode() + b"\n",
            hints=(
                "start vLLM with vllm-ascend 0.23: --enable-expert-parallel --additional-config "
                f"'{{\"eplb_config\": {config}}}'",
                f"redundant experts: {redundant_told(placement)}; tensor x data parallel size must be "
                f"{placement.num_ranks}, of {placement.num_nodes} nodes",
                *uneven,
                "replica choice: every device sends an expert's tokens to one copy, the rank modulo the number of "
                "copies, as --replica-choice ascend-rank does",
                "the option is announced to go: 0.26.0rc1 still reads the file, but its source loads weights in an "
                "order of its own; check the model's answers there",
            ),
        )

    def read(self, content: bytes, suffix: str) -> FileMap:
        document = only_keys(json_value(content), "moe_layer_count", "layer_list")
        layers = document["layer_list"]
        if not isinstance(layers, list) or not layers or not _is(document["moe_layer_count"], len(layers)):
            raise MapError(f"moe_layer_count is {document['moe_layer_count']!r}; layer_list must have as many layers")
        held_LGS = [self._devices(index, layer) for index, layer in enumerate(layers)]
        check_even_ranks([[len(held_S) for held_S in held_GS] for held_GS in held_LGS])
        rows = [[expert for held_S in held_GS for expert in held_S] for held_GS in held_LGS]
        return FileMap(rows=whole_rows(rows, "layer_list", even=False), num_ranks=len(held_LGS[0]))

    def _devices(self, index: int, layer: Any) -> list[list[Any]]:
        only_keys(layer, "layer_id", "device_count", "device_list")
        devices = layer["device_list"]
        if (
            not _is(layer["layer_id"], index)
            or not isinstance(devices, list)
            or not _is(layer["device_count"], len(devices))
        ):
            raise MapError(
                f"layer {index} of the list has layer_id {layer['layer_id']!r} and device_count "
                f"{layer['device_count']!r}; the engine goes by position, so both must agree with the lists"
            )
        ids = [only_keys(device, "device_id", "device_expert")["device_id"] for device in devices]
        if not all(map(_is, ids, range(len(devices)))):
            raise MapError(f"layer {index}: device_id are {str(ids)[:60]}; the engine goes by position: 0 and up")
        held_GS = [device["device_expert"] for device in devices]
        if not all(isinstance(held_S, list) for held_S in held_GS):
            raise MapError(f"layer {index}: device_expert must be a list of experts on every device")
        return held_GS


def _is(value: Any, number: int) -> bool:
    """Whether it is this whole number: to Python, true and 1.0 are equal to 1 as well."""
    return type(value) is int and value == number
