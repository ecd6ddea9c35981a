"""LMDeploy: `LMDEPLOY_EPLB_EXPERTS_STATISTIC_FILE`, loads as JSON [[float]] for every hidden layer and expert.

LMDeploy takes loads, not a map, and runs EPLB on them (lmdeploy 0.18.0, pytorch/nn/eplb.py). Without redundant experts
its greedy packing can be steered: whatever the loads are, the heaviest expert that is left goes to the GPU with the
least load so far; so loads are handed out in that order to the experts that the map wants there, and EPLB ends in
exactly this map. With redundant experts it cannot; then true loads are the best to give, and EPLB's map is what runs.
"""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt

from placement.core.placement import Placement, check_same_slots
from placement.errors import MapError
from placement.exporters.base import DEFAULTS, Export, ExportOptions
from placement.exporters.engine_layers import check_several_ranks, layer_hints, main_LP


class LMDeploy:
    name = "lmdeploy"
    suffixes = (".json",)
    takes_load = True
    replica_choices = ("uniform",)
    transport = "node"

    def export(self, placement: Placement, options: ExportOptions = DEFAULTS) -> Export:
        check_same_slots(placement, "LMDeploy")
        check_several_ranks(placement, "LMDeploy")
        model, main = placement.model, placement.model.num_main_layers
        groups, ranks_per_node = 1, placement.num_ranks  # one group and one node: otherwise it may not pack at all
        if options.load_LE is None:
            load_LE = np.stack([steering_load_E(row, placement) for row in main_LP(placement)])
            what = "LMDeploy makes this very map of these loads, which were chosen for that and measure nothing"
        else:
            load_LE = np.asarray(options.load_LE, dtype=np.float64)
            if load_LE.shape not in [(layers, model.num_experts) for layers in (main, model.num_layers)]:
                raise MapError(f"loads have shape {list(load_LE.shape)}; [{main}, {model.num_experts}] is needed")
            if (
                model.num_groups is not None
                and not placement.rank_hosts
                and model.num_groups % placement.num_nodes == 0
            ):
                groups, ranks_per_node = model.num_groups, placement.gpus_per_node
            what = (
                "LMDeploy makes its own map of these loads by EPLB: expect the figures of eplb, not those of this map"
            )
        load_HE = np.ones((model.num_hidden_layers or model.layer_ids[main - 1] + 1, model.num_experts))
        load_HE[list(model.layer_ids[:main])] = load_LE[:main]
        rows = ",\n ".join(json.dumps(row, separators=(",", ":")) for row in load_HE.tolist())
        return Export(
            content=f"[{rows}]\n".encode(),
            hints=(
                f"start LMDeploy with: LMDEPLOY_EPLB_EXPERTS_STATISTIC_FILE=FILE LMDEPLOY_EPLB_NUM_GROUPS={groups} "
                f"LMDEPLOY_EPLB_RANKS_PER_NODE={ranks_per_node} "
                f"LMDEPLOY_EPLB_NUM_REDUNDANT_EXPERTS={placement.num_redundant} lmdeploy serve api_server MODEL "
                f"--backend pytorch --dp {placement.num_ranks} --ep {placement.num_ranks} --enable-eplb",
                f"redundant experts: {placement.num_redundant} a layer",
                "replica choice: copies are chosen by chance, as --replica-choice uniform does here",
                what,
                *layer_hints(placement, engine="LMDeploy", hidden=True),
            ),
        )


def steering_load_E(phy2log_P: npt.NDArray[np.integer], placement: Placement) -> npt.NDArray[np.float64]:
    """Loads [E], whole numbers, of which greedy packing makes this row, slot for slot. Raises MapError."""
    if placement.num_redundant:
        raise MapError(
            f"LMDeploy cannot be given a map with redundant experts ({placement.num_redundant} here): it makes one of "
            "loads; give these with --load TRACES, or solve with --redundant-experts 0"
        )
    slots, ranks = placement.slots_per_gpu, placement.num_ranks
    if slots == 1 and not np.array_equal(phy2log_P, np.arange(ranks)):
        raise MapError("with one expert a GPU LMDeploy puts expert e on GPU e whatever the loads are; export none")
    load_E = np.empty(len(phy2log_P))
    sum_G, held_G = np.zeros(ranks), np.zeros(ranks, dtype=np.int64)
    for load in range(2 * len(phy2log_P), len(phy2log_P), -1):
        rank = int(np.where(held_G < slots, sum_G, np.inf).argmin())
        load_E[phy2log_P[rank * slots + held_G[rank]]] = load
        sum_G[rank] += load
        held_G[rank] += 1
    return load_E
