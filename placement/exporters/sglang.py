"""SGLang: `--init-expert-location FILE` with `physical_to_logical_map`, int [num_hidden_layers, P], as .json or .pt.

The engine indexes rows by absolute layer, dense layers included, and takes no other key; it checks neither the number
of rows nor that every expert has a slot, and a negative id wraps around (sglang 0.5.23, srt/eplb/expert_location.py).
Rows of dense layers are never used; they get the trivial map. MTP layers lie beyond the map and get the trivial one.
"""

from __future__ import annotations

import json

import numpy as np

from placement.core.placement import Placement
from placement.errors import MapError
from placement.exporters.base import DEFAULTS, Export, ExportOptions, FileMap
from placement.exporters.engine_layers import hidden_HP, layer_hints
from placement.exporters.imports import json_value, only_keys, whole_array, whole_rows
from placement.exporters.torch_save import torch_arrays, torch_bytes

KEY = "physical_to_logical_map"


class SGLang:
    name = "sglang"
    suffixes = (".json", ".pt")
    takes_load = False
    replica_choices = ("local-first", "uniform")

    def export(self, placement: Placement, options: ExportOptions = DEFAULTS) -> Export:
        rows_HP = hidden_HP(placement)
        if options.suffix == ".pt":
            content = torch_bytes({KEY: rows_HP.astype(np.int64)})
        else:
            content = json.dumps({KEY: rows_HP.tolist()}, separators=(",", ":")).encode() + b"\n"
        redundant = placement.num_redundant
        return Export(
            content=content,
            hints=(
                "start SGLang with: --init-expert-location FILE"
                f" --ep-size {placement.num_ranks} --ep-num-redundant-experts {redundant} --moe-a2a-backend deepep",
                f"redundant experts: {redundant} a layer, {placement.slots_per_gpu} slots on each of "
                f"{placement.num_ranks} GPUs, {placement.num_nodes} nodes (--nnodes)",
                "replica choice: its default --ep-dispatch-algorithm static chooses copies as --replica-choice "
                "local-first does here; dynamic, the only one without an all-to-all backend, as uniform",
                f"the map has {len(rows_HP)} rows, one for each hidden layer, dense ones included",
                *layer_hints(placement, engine="SGLang", hidden=True),
            ),
        )

    def read(self, content: bytes, suffix: str) -> FileMap:
        if suffix == ".pt":
            loaded = torch_arrays(content)
            return FileMap(phy2log_RP=whole_array(only_keys(loaded, KEY)[KEY], KEY), hidden=True)
        value = json_value(content)
        if isinstance(value, dict) and "logical_count" in value:
            raise MapError("it holds logical_count: loads, from which SGLang makes a map itself; it has no map")
        return FileMap(phy2log_RP=whole_rows(only_keys(value, KEY)[KEY], KEY), hidden=True)
