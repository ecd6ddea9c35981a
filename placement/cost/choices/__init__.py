"""The registry: a replica choice is one file and one line here.

A replica choice is the rule by which an engine picks the copy of an expert that serves a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from placement.support.registry import Registry

if TYPE_CHECKING:
    from placement.cost.choices.base import ReplicaChoice

REPLICA_CHOICES: Registry[ReplicaChoice] = Registry(
    "replica_choice=",
    {
        "min-nodes": "placement.cost.choices.min_nodes:MinNodes",
        "min-nodes-balanced": "placement.cost.choices.min_nodes_balanced:MinNodesBalanced",
        "min-nodes-step": "placement.cost.choices.min_nodes_step:MinNodesStep",
        "local-first": "placement.cost.choices.local_first:LocalFirst",
        "uniform": "placement.cost.choices.uniform:Uniform",
        "vllm-hash": "placement.cost.choices.vllm_hash:VllmHash",
        "sglang-static": "placement.cost.choices.sglang_static:SGLangStatic",
        "sglang-dynamic": "placement.cost.choices.sglang_dynamic:SGLangDynamic",
        "ascend-rank": "placement.cost.choices.ascend_rank:AscendRank",
    },
)

__all__ = ["REPLICA_CHOICES"]
