"""Simulated annealing of slot contents on the exact objective."""
