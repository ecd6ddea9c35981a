"""SGLang: `--init-expert-location FILE.json` with `physical_to_logical_map`, int [num_hidden_layers, P].

The engine indexes rows by absolute layer, dense layers included, and takes no other key (sglang 0.5.23,
srt/eplb/expert_location.py). Rows of layers that are not MoE layers are never used; they get the trivial map.
"""

from __future__ import annotations

import json

import numpy as np

from placement.exporters.base import Export
from placement.placement_map import Placement


class SGLang:
    name = "sglang"
    suffix = ".json"

    def export(self, placement: Placement) -> Export:
        model = placement.model
        num_rows = model.layer_ids[-1] + 1
        trivial = np.arange(placement.num_slots) % model.num_experts
        rows = np.tile(trivial, (num_rows, 1))
        rows[list(model.layer_ids)] = placement.phy2log_LP
        content = json.dumps({"physical_to_logical_map": rows.tolist()}, separators=(",", ":"))
        return Export(
            content=content.encode() + b"\n",
            hints=(
                "start SGLang with: --init-expert-location FILE"
                f" --ep-size {placement.num_ranks} --ep-num-redundant-experts {placement.num_redundant}",
                f"the map has {num_rows} rows, one for each hidden layer up to the last MoE layer, dense ones included",
                "its default --ep-dispatch-algorithm static chooses copies as --replica-choice local-first does here",
            ),
        )
