"""Kernels that other kernels alone call: numba compiles them into their callers, and no door to Python for them.

The door, which converts arguments and results, is a quarter of the time that numba takes for a small kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Any, TypeVar, cast

import numba as nb

F = TypeVar("F", bound=Callable[..., Any])
WITHOUT_DOOR: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def inner_kernel(function: F) -> F:
    """Decorate a function that only kernels call. Called from Python, the function runs uncompiled."""
    return cast(F, _InnerKernel(function))


class _InnerKernel:
    """What numba takes for its own compiled function, and Python for `function` itself: without its door, a call of the
    compiled function from Python would end the process."""

    def __init__(self, function: Callable[..., Any]) -> None:
        update_wrapper(self, function)
        self.py_func = function
        self._compiled = nb.njit(cache=True, **WITHOUT_DOOR)(function)
        self._numba_type_ = nb.types.Dispatcher(self._compiled)  # numba asks values of an unknown type for theirs

    def __call__(self, *arguments: Any) -> Any:
        return self.py_func(*arguments)

    @property
    def signatures(self) -> list[Any]:
        """The types that the function was compiled for."""
        return self._compiled.signatures  # type: ignore[no-any-return]
