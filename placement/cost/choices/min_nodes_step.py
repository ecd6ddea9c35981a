"""`min-nodes-step`: the nodes of `min-nodes-balanced`; the copies on them are shared out by the counts of the step.

Where steps are not told apart, and for a rank that is on its own, the choice is `min-nodes-balanced`.
"""

from __future__ import annotations

from placement.cost.choices.min_nodes_balanced import MinNodesBalanced
from placement.cost.lookup_tables import LayerTables
from placement.cost.step_groups import StepGroups, step_groups


class MinNodesStep(MinNodesBalanced):
    name = "min-nodes-step"

    def step_groups(self, tables: LayerTables) -> StepGroups | None:
        return step_groups(tables)
