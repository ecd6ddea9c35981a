"""Following traffic: a sliding window, a test of drift, and a change of the map where it pays."""

from placement.analysis.watch.drift import Drift, drift_test
from placement.analysis.watch.planner import Decision, Planner
from placement.analysis.watch.window import Window

__all__ = ["Decision", "Drift", "Planner", "Window", "drift_test"]
