"""Expert placement for Mixture-of-Experts inference.

Example::

    trace = open_trace("traces/")
    cluster = Cluster.fit(trace.model.num_experts, num_nodes=4)
    solution = solve(trace, cluster)
    save_placement("placement.json", solution_document(solution))
"""

from __future__ import annotations

import logging

import lazy_loader

__version__ = "0.2.0"

# the names are in __init__.pyi; each is imported when it is first used, so that the command line starts at once
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]

logging.getLogger("placement").addHandler(logging.NullHandler())
