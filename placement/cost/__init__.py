"""Exact evaluation of any map on any trace."""

from placement.cost.evaluation import Evaluation, evaluate, evaluate_counts
from placement.cost.replica_choice import REPLICA_CHOICES
from placement.cost.sampled import evaluate_sample
from placement.cost.step_time import step_time_us

__all__ = ["REPLICA_CHOICES", "Evaluation", "evaluate", "evaluate_counts", "evaluate_sample", "step_time_us"]
