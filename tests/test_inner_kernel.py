"""Kernels that only kernels call: compiled within their callers, and safe from Python."""

from __future__ import annotations

import numba as nb

from placement.support.inner_kernel import inner_kernel


@inner_kernel
def doubled(x: int) -> int:
    """Twice a number."""
    return 2 * x


@nb.njit
def doubled_plus_one(x: int) -> int:
    return doubled(x) + 1


def test_kernels_compile_it_and_python_runs_it() -> None:
    """Without numba's door to Python a compiled call from there would end the process: Python takes the source."""
    assert doubled(4) == 8
    assert doubled.signatures == []  # type: ignore[attr-defined]
    assert doubled_plus_one(4) == 9
    assert len(doubled.signatures) == 1  # type: ignore[attr-defined]
    assert doubled(4) == 8
    assert (doubled.__name__, doubled.__doc__) == ("doubled", "Twice a number.")
