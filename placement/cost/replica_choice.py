"""Which copy of an expert serves a token: each engine chooses differently, so the choice is a parameter.

min-nodes    the home node first, then the fewest further nodes that cover the token's set; all smallest covers weigh
             the same, and so do the chosen nodes that host an expert, and its copies on a node (our runtime)
min-nodes-balanced  as many nodes as `min-nodes`; equal covers and copies are chosen by running load, requests mixed
local-first  a copy on the home node if there is one, else any copy with equal chance (SGLang `static`)
uniform      any copy with equal chance, wherever it is (vLLM's hash of the token row)
"""

from __future__ import annotations

from placement.errors import OptionError

MIN_NODES, LOCAL_FIRST, UNIFORM, MIN_NODES_BALANCED = 0, 1, 2, 3
REPLICA_CHOICES = {
    "min-nodes": MIN_NODES,
    "min-nodes-balanced": MIN_NODES_BALANCED,
    "local-first": LOCAL_FIRST,
    "uniform": UNIFORM,
}


def replica_choice_code(name: str) -> int:
    if name not in REPLICA_CHOICES:
        raise OptionError(f"replica_choice={name!r} is unknown; choose one of {', '.join(REPLICA_CHOICES)}")
    return REPLICA_CHOICES[name]
