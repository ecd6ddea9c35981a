"""Shards on disk or in a bucket: how their bytes are read and written."""
