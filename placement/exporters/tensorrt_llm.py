"""TensorRT-LLM: `moe_config.load_balancer`, YAML with `initial_global_assignments` by absolute layer number.

The engine stops at a layer that is missing, MTP layers included, and at further keys; C++ checks ids alone. Without
expert parallelism, or for a model that is not on its list, it leaves the file aside without a word.
"""

from __future__ import annotations

from placement.core.placement import Placement, check_same_slots
from placement.errors import MapError
from placement.exporters.base import DEFAULTS, Export, ExportOptions, FileMap
from placement.exporters.engine_layers import check_several_ranks
from placement.exporters.imports import only_keys, whole_rows
from placement.support.text_files import parse_yaml

# moe_model_arch_list in its moe_load_balancer.py, as its examples/wide_ep/README.md has the list
MODELS = (
    "DeepSeek-V3, V3.2 and V4, GLM with DSA, GPT-OSS, Kimi K2.5, Mixtral, Llama 4, Nemotron-H, and Qwen2, Qwen3 and "
    "Qwen3.5 MoE"
)
KEYS = ("num_slots", "layer_updates_per_iter", "initial_global_assignments")


class TensorRTLLM:
    name = "tensorrt-llm"
    suffixes = (".yaml", ".yml")
    takes_load = False
    replica_choices = ("uniform",)
    transport = "rank"

    def export(self, placement: Placement, options: ExportOptions = DEFAULTS) -> Export:
        check_same_slots(placement, "TensorRT-LLM")
        check_several_ranks(placement, "TensorRT-LLM")
        model = placement.model
        lines = [f"num_slots: {placement.num_slots}", "layer_updates_per_iter: 0", "initial_global_assignments:"]
        lines += [
            f"  {layer}: {row}" for layer, row in zip(model.layer_ids, placement.engine_LP().tolist(), strict=True)
        ]
        hints = [
            "start TensorRT-LLM with, in the YAML of its options: moe_config: {load_balancer: FILE}, "
            f"moe_expert_parallel_size: {placement.num_ranks}, enable_attention_dp: true",
            f"redundant experts: {placement.num_redundant} a layer, num_slots {placement.num_slots} on "
            f"{placement.num_ranks} GPUs of {placement.num_nodes} nodes",
            "replica choice: copies take turns, as --replica-choice uniform does here",
            f"check: the engine leaves the file aside without a word for models other than {MODELS}, and without "
            "expert parallelism or attention DP; its log must say 'Created MoE LoadBalancer'",
        ]
        if model.num_main_layers == model.num_layers:
            hints.append(
                f"layers {model.layers_said}; if MTP layers are used (DeepSeek-V3 has one), "
                "give --num-hidden-layers and --mtp-layers: TensorRT-LLM stops where one is missing"
            )
        return Export(content="\n".join([*lines, ""]).encode(), hints=tuple(hints))

    def read(self, content: bytes, suffix: str) -> FileMap:
        try:
            value = parse_yaml(content)
        except ValueError as error:
            raise MapError(f"it is not YAML: {error}") from None
        if isinstance(value, dict):
            value = {"layer_updates_per_iter": 0} | value  # the engine's default
        document = only_keys(value, *KEYS)
        rows, slots = document["initial_global_assignments"], document["num_slots"]
        if not isinstance(rows, dict) or not rows or any(type(layer) is not int or layer < 0 for layer in rows):
            raise MapError("initial_global_assignments must map the numbers of layers to rows of slots")
        layers = sorted(rows)
        rows_R = whole_rows([rows[layer] for layer in layers], "initial_global_assignments", even=False)
        for layer, row in zip(layers, rows_R, strict=True):
            if type(slots) is not int or slots != len(row):
                raise MapError(f"num_slots is {slots!r}, but layer {layer} has {len(row)} slots")
        return FileMap(rows=rows_R, layer_ids=tuple(layers))
