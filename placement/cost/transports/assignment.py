"""`assignment`: one copy a remote assignment (DeepEP low latency). With one copy an expert, every map sends as much."""

from placement.cost.transports.base import PER_ASSIGNMENT, Transport


class AssignmentTransport(Transport):
    name = "assignment"
    engines = "DeepEP low latency"
    copies = PER_ASSIGNMENT
