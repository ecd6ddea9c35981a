"""Exact evaluation of any map on any trace."""
