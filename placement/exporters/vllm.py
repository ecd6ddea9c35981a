"""vLLM, experimental: `eplb_config.initial_expert_map_path` of vLLM's pull request #49572, which is not merged.

JSON: `[[P], ...]` with a row for each MoE layer, MTP layers not among them, or `[P]` for all layers alike.
vLLM 0.33 has no such option: the plugin in `vllm_plugin` makes it start from a map.
"""

from __future__ import annotations

import json

from placement.core.placement import Placement, check_same_slots
from placement.exporters.base import DEFAULTS, Export, ExportOptions, FileMap
from placement.exporters.engine_layers import layer_hints, main_LP
from placement.exporters.imports import json_value, whole_rows

NEVER = 1_000_000_000  # steps between rearrangements, so that vLLM's own balancer does not undo the map
STRATEGY = (
    "leave --expert-placement-strategy out: with EPLB, vLLM takes linear in the place of round_robin, and the map says "
    "where experts are"
)
REPLICA_CHOICE = "replica choice: vLLM takes the copy by a hash of the token's row, as --replica-choice vllm-hash does"


class VLLM:
    name = "vllm"
    suffixes = (".json",)
    takes_load = False
    replica_choices = ("vllm-hash",)
    transport = "node"

    def export(self, placement: Placement, options: ExportOptions = DEFAULTS) -> Export:
        check_same_slots(placement, "vLLM")
        rows = ",\n ".join(json.dumps(row, separators=(",", ":")) for row in main_LP(placement).tolist())
        config = f'{{"initial_expert_map_path": "FILE", "num_redundant_experts": {placement.num_redundant}'
        return Export(
            content=f"[{rows}]\n".encode(),
            hints=(
                "experimental: only a vLLM with pull request #49572, which is open, reads this file; for vLLM 0.33 use "
                "--to vllm-plugin",
                f"start it with: --enable-expert-parallel --enable-eplb --eplb-config '{config}, "
                f'"step_interval": {NEVER}}}\'',
                f"redundant experts: {placement.num_redundant} a layer; tensor x data parallel size must be "
                f"{placement.num_ranks}, of {placement.num_nodes} nodes",
                REPLICA_CHOICE,
                STRATEGY,
                *layer_hints(placement, engine="vLLM", hidden=False),
            ),
        )

    def read(self, content: bytes, suffix: str) -> FileMap:
        value = json_value(content)
        shared = isinstance(value, list) and bool(value) and not isinstance(value[0], list)
        return FileMap(rows=whole_rows([value] if shared else value, "the map"), every_layer=shared)
