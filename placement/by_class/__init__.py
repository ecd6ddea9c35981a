"""One map for each class of traffic, beside one map for all: a node pool for code, one for chat; prefill and decode."""

from placement.by_class.answer import ONE, OWN, ByClass, Cost, TrafficClass
from placement.by_class.files import by_class_document, save_classes
from placement.by_class.solve import file_names, solve_by

__all__ = [
    "ONE",
    "OWN",
    "ByClass",
    "Cost",
    "TrafficClass",
    "by_class_document",
    "file_names",
    "save_classes",
    "solve_by",
]
