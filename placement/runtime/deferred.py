"""A tensor whose values are computed later: at the latest when an operation asks for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from placement.errors import OptionError


class Deferred(Tensor):
    """Has the shape, type and device of `like`, and the values of `compute()`, which is called once.

    Every operation on it is one on those values; what goes around torch's operators finds no memory, and fails.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # operators alone ask
    compute: Callable[[], Tensor]
    value: Tensor | None

    @staticmethod
    def __new__(cls, like: Tensor, compute: Callable[[], Tensor]) -> Deferred:
        made: Deferred = Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype, device=like.device)
        made.compute, made.value = compute, None
        return made

    def __init__(self, like: Tensor, compute: Callable[[], Tensor]) -> None:
        super().__init__()

    def resolve(self) -> Tensor:
        """The values, computed now if they are not yet. Raises OptionError if they are not as `like` was."""
        if self.value is None:
            value = self.compute()
            if (value.shape, value.dtype, value.device) != (self.shape, self.dtype, self.device):
                raise OptionError(
                    f"a shared expert gives {list(value.shape)} of {value.dtype} where its input is {list(self.shape)} "
                    f"of {self.dtype}; attach with overlap=False"
                )
            self.value = value
        return self.value

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = tree_map_only(Deferred, Deferred.resolve, (args, kwargs or {}))
        return func(*args, **kwargs)
