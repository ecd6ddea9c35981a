"""SGLang: `--init-expert-location FILE` with `physical_to_logical_map`, int [num_hidden_layers, P], as .json or .pt.

The engine indexes rows by absolute layer, dense layers included, and takes no other key; it checks neither the number
of rows nor that every expert has a slot, and a negative id wraps around (sglang 0.5.23, srt/eplb/expert_location.py).
With `--enable-eplb` the map changes while SGLang runs: the one in use is in the dumps of its recorder.
Rows of dense layers are never used; they get the trivial map. MTP layers lie beyond the map and get the trivial one.
"""

from __future__ import annotations

import json

import numpy as np

from placement.core.placement import Placement, check_same_slots
from placement.errors import MapError
from placement.exporters.base import DEFAULTS, Export, ExportOptions, FileMap
from placement.exporters.engine_layers import hidden_HP, layer_hints
from placement.exporters.imports import json_value, only_keys, whole_array, whole_rows
from placement.exporters.torch_save import torch_bytes, torch_dict

KEY, LOADS = "physical_to_logical_map", "logical_count"
IN_DUMP = "last_physical_to_logical_map"  # the map in use, in a dump of the recorder


class SGLang:
    name = "sglang"
    suffixes = (".json", ".pt")
    takes_load = False
    replica_choices = ("sglang-static", "sglang-dynamic")
    transport = "node"

    def export(self, placement: Placement, options: ExportOptions = DEFAULTS) -> Export:
        check_same_slots(placement, "SGLang")
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
                "sglang-static does here; dynamic as sglang-dynamic, and without an all-to-all backend as uniform",
                "check: models whose class has no get_model_config_for_expert_location (Mixtral and OLMoE, say) leave "
                "the file aside without a word; with SGLANG_LOG_EXPERT_LOCATION_METADATA=1 the log must show the map",
                f"the map has {len(rows_HP)} rows, one for each hidden layer, dense ones included",
                *layer_hints(placement, engine="SGLang", hidden=True),
                *node_hints(placement),
            ),
        )

    def read(self, content: bytes, suffix: str) -> FileMap:
        value = torch_dict(content) if suffix == ".pt" else json_value(content)
        if isinstance(value, dict) and LOADS in value:
            raise MapError(
                f"it holds {LOADS}: loads, from which SGLang makes a map itself; it has no map; give a file with "
                f"{KEY}, or a dump of the recorder in mode per_pass or per_token"
            )
        key = IN_DUMP if isinstance(value, dict) and IN_DUMP in value else KEY
        rows = value[IN_DUMP] if key == IN_DUMP else only_keys(value, KEY)[KEY]
        if isinstance(rows, np.ndarray):
            return FileMap(rows=list(whole_array(rows, key)), hidden=True)
        if suffix == ".pt" and isinstance(rows, list):  # plain lists, of which rows of whole numbers were made arrays
            rows = [row.tolist() if isinstance(row, np.ndarray) else row for row in rows]
        return FileMap(rows=whole_rows(rows, key), hidden=True)


def node_hints(placement: Placement) -> tuple[str, ...]:
    """What differs where ranks are not numbered node by node."""
    if not placement.rank_hosts or not placement.num_redundant:
        return ()
    return (
        f"check: SGLang takes {placement.gpus_per_node} consecutive ranks for a node when it chooses among copies, and "
        "these ranks lie otherwise: the figures of --replica-choice uniform hold, those of sglang-static do not",
    )
