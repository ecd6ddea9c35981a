"""Traces: the format, reading, writing, counting, describing and making them."""

from placement.traces.count import count
from placement.traces.trace import Trace, open_trace

__all__ = ["Trace", "count", "open_trace"]
