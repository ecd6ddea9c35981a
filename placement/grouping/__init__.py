"""Micro-batch grouping: requests to home nodes, together with where the experts are."""

from placement.grouping.assign import Assignment, assign_homes
from placement.grouping.router import MicroBatch, Router

__all__ = ["Assignment", "MicroBatch", "Router", "assign_homes"]
