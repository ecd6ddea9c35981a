"""Traces: the format, reading, writing, counting, describing and making them."""
