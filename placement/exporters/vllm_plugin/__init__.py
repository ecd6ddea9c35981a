"""A plugin of vLLM (entry point in the group `vllm.general_plugins`): vLLM starts from a placement file.

vLLM 0.33 has no option for an initial map. It loads weights in an order of its own and then, if EPLB is on, rearranges
them by load. With the environment variable EXPERT_PLACEMENT_FILE set to a placement file, the plugin makes the first
rearrangement come after the first forward pass and end in the map of that file, and every later one too. Several files
(`four.json:six.json`) are maps for the sizes that elastic EP may take. Without the variable it does nothing and loads
nothing. Made for vLLM 0.33.0; see `start.py`.
"""

from __future__ import annotations

import os

VARIABLE = "EXPERT_PLACEMENT_FILE"


def register() -> None:
    """Called by vLLM in each of its processes, perhaps several times. Raises InputError on an unusable map."""
    path = os.environ.get(VARIABLE)
    if path:
        from placement.exporters.vllm_plugin.start import start_from

        start_from(path)
