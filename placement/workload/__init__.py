"""Mergeable statistics of any amount of trace, and the files that hold them."""
