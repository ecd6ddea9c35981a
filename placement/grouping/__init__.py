"""Micro-batch grouping: requests to home nodes, together with where the experts are."""

from placement.grouping.assign import Assignment, assign_homes
from placement.grouping.router import Group, Router

__all__ = ["Assignment", "Group", "Router", "assign_homes"]
