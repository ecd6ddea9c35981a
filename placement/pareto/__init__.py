"""The whole front of sends against rank imbalance: one placement for every price of imbalance."""

from placement.pareto.answer import Front, FrontPoint
from placement.pareto.files import FRONT_FILE, PLOT_FILE, SCHEMA, front_document, save_front
from placement.pareto.solve import solve_front

__all__ = ["FRONT_FILE", "PLOT_FILE", "SCHEMA", "Front", "FrontPoint", "front_document", "save_front", "solve_front"]
