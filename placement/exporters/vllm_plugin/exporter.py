"""The file for the plugin: a placement file, and the flags to start today's vLLM with."""

from __future__ import annotations

from placement.core.placement import Placement, check_same_slots
from placement.documents.placement import PlacementFile
from placement.errors import MapError
from placement.exporters.base import DEFAULTS, Export, ExportOptions
from placement.exporters.engine_layers import check_several_ranks, layer_hints
from placement.exporters.vllm import NEVER, REPLICA_CHOICE, STRATEGY
from placement.exporters.vllm_plugin import VARIABLE

MOST_REDUNDANT = 1023  # MAX_EXPERT_REDUNDANCY of vLLM 0.33


class VLLMPlugin:
    name = "vllm-plugin"
    suffixes = (".json",)
    takes_load = False
    replica_choices = ("vllm-hash",)
    transport = "node"

    def export(self, placement: Placement, options: ExportOptions = DEFAULTS) -> Export:
        check_same_slots(placement, "vLLM")
        check_several_ranks(placement, "vLLM")
        if placement.num_redundant > MOST_REDUNDANT:
            raise MapError(f"{placement.num_redundant} redundant experts are more than vLLM's {MOST_REDUNDANT}")
        config = (
            f'{{"num_redundant_experts": {placement.num_redundant}, "step_interval": {NEVER}, "window_size": 1, '
            '"use_async": false}'
        )
        return Export(
            content=PlacementFile.of(placement).content(),
            hints=(
                "install this package beside vLLM 0.33, on every node, and leave expert-placement in VLLM_PLUGINS if "
                "that is set",
                f"start vLLM with: {VARIABLE}=FILE vllm serve MODEL --enable-expert-parallel --enable-eplb "
                f"--eplb-config '{config}'",
                f"redundant experts: {placement.num_redundant} a layer; tensor x data parallel size must be "
                f"{placement.num_ranks}, of {placement.num_nodes} nodes; with Ray also set "
                f"VLLM_RAY_EXTRA_ENV_VARS_TO_COPY={VARIABLE}",
                REPLICA_CHOICE,
                STRATEGY,
                f"with --enable-elastic-ep name a map for every size, each of {placement.slots_per_gpu} slots a GPU: "
                f"{VARIABLE}=FILE:OTHER",
                "weights move to their places after the first forward pass; on ROCm set use_async to true",
                *layer_hints(placement, engine="vLLM", hidden=False),
            ),
        )
