"""torch as the tests of the runtime use it: on one thread, and with the same draws in every run."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

HAS_TORCH = find_spec("torch") is not None  # tests skip themselves without it


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """As many processes as a test has share the cores."""
    if HAS_TORCH:
        import torch

        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """Also of weights and tokens that a test draws without a generator of its own."""
    if HAS_TORCH:
        import torch

        torch.manual_seed(0)
