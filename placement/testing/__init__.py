"""Conformance suites and small problems for people who write a solver or an exporter of their own.

`placement.testing.solvers.SolverContract` holds the tests that every solver must pass.
"""
