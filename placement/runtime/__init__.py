"""Placement maps applied while a model runs: tokens to the right replica, and sums back, on torch.distributed."""

from __future__ import annotations

from typing import Any

import lazy_loader

# the names are in __init__.pyi; each is imported when it is first used: `checkpoint` needs no torch, all else does
_lazy, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """The public name, or ImportError that says how to install torch where it lacks."""
    try:
        return _lazy(name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(
            'placement.runtime needs torch; install it with: pip install "expert-placement[runtime]"', name="torch"
        ) from None
