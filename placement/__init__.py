"""Expert placement for Mixture-of-Experts inference.

trace = open_trace("traces/")
cluster = Cluster.fit(trace.model.num_experts, num_nodes=4)
solution = solve(trace, cluster)
save_placement("placement.json", solution_document(solution))
"""

from __future__ import annotations

import logging

from placement.cluster import Cluster
from placement.cost import Evaluation, evaluate
from placement.errors import InfeasibleError, InputError, LimitError, PlacementError
from placement.exporters import get_exporter
from placement.migration import MigrationPlan, migration_plan
from placement.model import Model
from placement.options import Options
from placement.placement_json import load_placement, save_placement
from placement.placement_map import Placement
from placement.solution import Solution, solution_document
from placement.solve import solve
from placement.traces import Trace, count, open_trace
from placement.version import VERSION as __version__
from placement.workload import Workload

logging.getLogger("placement").addHandler(logging.NullHandler())

__all__ = [
    "Cluster",
    "Evaluation",
    "InfeasibleError",
    "InputError",
    "LimitError",
    "MigrationPlan",
    "Model",
    "Options",
    "Placement",
    "PlacementError",
    "Solution",
    "Trace",
    "Workload",
    "__version__",
    "count",
    "evaluate",
    "get_exporter",
    "load_placement",
    "migration_plan",
    "open_trace",
    "save_placement",
    "solution_document",
    "solve",
]
