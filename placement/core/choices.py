"""What users may choose by name, and what they get where they choose nothing.

This module imports nothing, so that the command line shows its help at once. Solvers, readers, exporters, replica
choices and transports have registries of their own.
"""

OBJECTIVES = ("locality", "balance", "time")
BALANCE_WEIGHT = 1.5  # sends per token that one unit of rank imbalance is worth
BUSY_SHARE = 0.25  # of the sends, counted as if every node got as many as the busiest does
BOUNDS = ("quick", "tight", "none")
REPLICA_CHOICE = "min-nodes"  # of placement/cost/choices/
TRANSPORT = "node"  # of placement/cost/transports/

HOLDOUT = 0.2  # share of the requests to measure on
CAPTURES = "traces"  # the parting by what was given
PARTINGS = ("domain", "category", CAPTURES, "windows:N")  # parts between which traffic may shift
CLASSES = ("domain", "category", "phase")  # classes of traffic that may have a map each
STUDIES = ("domain", "category")  # what requests are told apart by in a study of a trace
TOKEN_TOLERANCE = 0.02  # tokens more than its share that a home node may get

ADVICE_WORK_LIMIT = 10_000  # moves a layer: some 20 maps are solved, and a tenth of the work finds most of the gain
MOST_DROPPED = 0.05  # share of assignments that a capacity factor may drop

DRIFT_LEVEL, MIN_EFFECT = 0.01, 0.02  # of the test of drift: false alarms a look, share of assignments that moved
HORIZON_STEPS = 10_000  # in which a new map has to pay
