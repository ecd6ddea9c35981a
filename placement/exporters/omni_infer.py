"""omni-infer: `.npy` of 0 and 1, int32 [ranks, MoE layers, experts] (omni-eplb, omni_placement/expert_mapping.py).

The slots of a rank are its experts in ascending order. The engine checks the shape alone; layers from its
`max_moe_layer_num` on, such as MTP layers, get the trivial map.
"""

from __future__ import annotations

import io

import numpy as np

from placement.core.placement import NO_SLOT, Placement
from placement.errors import MapError
from placement.exporters.base import DEFAULTS, Export, ExportOptions, FileMap
from placement.exporters.engine_layers import check_once, check_several_ranks, layer_hints, main_LP, redundant_told
from placement.exporters.imports import check_even_ranks, whole_array
from placement.support.array_files import open_array


class OmniInfer:
    name = "omni-infer"
    suffixes = (".npy",)
    takes_load = False
    replica_choices = ("uniform",)
    transport = "assignment"

    def export(self, placement: Placement, options: ExportOptions = DEFAULTS) -> Export:
        check_several_ranks(placement, "omni-infer")
        check_once(placement, "omni-infer's file says whether a GPU holds an expert, not how often")
        phy2log_LP = main_LP(placement)
        holds_GLE = np.zeros((placement.num_ranks, len(phy2log_LP), placement.model.num_experts), dtype=np.int32)
        layer_M, slot_M = np.nonzero(phy2log_LP != NO_SLOT)
        holds_GLE[placement.rank_of_slot_P()[slot_M], layer_M, phy2log_LP[layer_M, slot_M]] = 1
        buffer = io.BytesIO()
        np.save(buffer, holds_GLE, allow_pickle=False)
        return Export(
            content=buffer.getvalue(),
            hints=(
                "start omni-infer with, in config.yaml of its omni-eplb: pattern_path: FILE (an absolute path), "
                f"max_moe_layer_num: {len(phy2log_LP)}, enable_dynamic: False",
                f"redundant experts: {redundant_told(placement)}, {placement.slots_per_gpu} experts at most on each of "
                f"{placement.num_ranks} devices, {placement.gpus_per_node} a host (num_devices_per_host)",
                "replica choice: one copy for every rank (enable_rank_round_robin), else by the token's row: over all "
                "ranks both are as --replica-choice uniform",
                "experts of a device are in ascending order, which costs nothing",
                *layer_hints(placement, engine="omni-infer", hidden=False),
            ),
        )

    def read(self, content: bytes, suffix: str) -> FileMap:
        try:
            loaded = open_array(io.BytesIO(content)).whole(len(content))
        except (ValueError, MemoryError) as error:
            raise MapError(f"it is not a .npy file of numbers: {error}") from None
        holds_GLE = whole_array(loaded, "the pattern", ndim=3)
        if not np.isin(holds_GLE, (0, 1)).all():
            raise MapError(f"the pattern holds {holds_GLE.min()} to {holds_GLE.max()}; 0 and 1 are allowed")
        check_even_ranks(holds_GLE.sum(axis=2).T.tolist())
        ranks, layers, experts = holds_GLE.shape
        rows = [np.nonzero(holds_GLE[:, layer])[1].astype(np.int64) for layer in range(layers)]
        return FileMap(rows=rows, num_ranks=ranks, num_experts=experts)
