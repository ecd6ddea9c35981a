"""Micro-batch grouping: requests to home nodes, together with where the experts are."""
