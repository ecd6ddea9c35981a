"""Functions that numba compiles, cached on disk beside their files.

numba notices when the file of a kernel changes. It does not notice that another kernel changed which the first one
calls, and it ends with an error where a class in a signature was moved. Both happen when a release replaces another in
place: installers leave the compiled files. So every compiled file bears the version of this package, and those of
another version are compiled anew.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Any, TypeVar, cast

import numba as nb

from placement import __version__

F = TypeVar("F", bound=Callable[..., Any])
NOT_COMPILED = bool(getattr(nb.config, "DISABLE_JIT", False))  # as fuzzing and debuggers want
WITHOUT_DOOR: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
UNCOUNTED: dict[str, Any] = {"_nrt": False}


def kernel(function: F) -> F:
    """Compile a function when it is first called; it runs without the GIL."""
    return cast(F, _of_this_version(nb.njit(cache=True, nogil=True)(function)))


def search_kernel(function: F) -> F:
    """As `kernel`, for a function that makes no array, nor does what the function calls.

    numba counts the references to each array that is taken from a tuple, by two locked instructions: half of the time
    of a search, whose arrays are all in tuples and outlive the call.
    """
    return cast(F, _of_this_version(nb.njit(cache=True, nogil=True, **UNCOUNTED)(function)))


def inlined_kernel(function: F) -> F:
    """As `kernel`, copied into every kernel that calls it."""
    return cast(F, _of_this_version(nb.njit(cache=True, nogil=True, inline="always")(function)))


def inner_kernel(function: F) -> F:
    """Decorate a function that only kernels call. Called from Python, the function runs uncompiled.

    The door to Python, which converts arguments and results, is a quarter of the time that numba takes for a small
    kernel; such a function has none.
    """
    return function if NOT_COMPILED else cast(F, _InnerKernel(function, WITHOUT_DOOR))


def inner_search_kernel(function: F) -> F:
    """As `inner_kernel`, for a function that makes no array: see `search_kernel`."""
    return function if NOT_COMPILED else cast(F, _InnerKernel(function, WITHOUT_DOOR | UNCOUNTED))


class _InnerKernel:
    """What numba takes for its own compiled function, and Python for `function` itself: without its door, a call of the
    compiled function from Python would end the process."""

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        update_wrapper(self, function)
        self.py_func = function
        self._compiled = _of_this_version(nb.njit(cache=True, **options)(function))
        self._numba_type_ = nb.types.Dispatcher(self._compiled)  # numba asks values of an unknown type for theirs

    def __call__(self, *arguments: Any) -> Any:
        return self.py_func(*arguments)

    @property
    def signatures(self) -> list[Any]:
        """The types that the function was compiled for."""
        return self._compiled.signatures  # type: ignore[no-any-return]


def _of_this_version(compiled: Any) -> Any:
    """The function, whose cache takes what another version of this package compiled for what another numba did."""
    if NOT_COMPILED:
        return compiled
    file = compiled._cache._cache_file  # numba has no public door to it; tests/test_kernel.py would see it gone
    file._version = f"{nb.__version__}, expert-placement {__version__}"
    return compiled
