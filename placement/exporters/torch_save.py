"""`.pt` files: tensors as torch saves them. torch is loaded only here, and only when such a file is asked for."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.errors import MapError, OptionError


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise OptionError(
            ".pt files need torch, which is not installed; pip install 'expert-placement[runtime]', or name a file of "
            "another ending"
        ) from None
    return torch


def torch_bytes(arrays: dict[str, npt.NDArray[Any]]) -> bytes:
    """A dict of tensors as `torch.save` writes it. Raises OptionError where torch is absent."""
    torch = _torch()
    buffer = io.BytesIO()
    torch.save({name: torch.from_numpy(np.array(array, order="C")) for name, array in arrays.items()}, buffer)
    return buffer.getvalue()


def torch_arrays(content: bytes) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a `.pt` file. Only tensors are loaded, never objects. Raises MapError, OptionError."""
    torch = _torch()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of what is odd about the file: it is read or refused
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if isinstance(loaded, dict) and all(isinstance(value, torch.Tensor) for value in loaded.values()):
            return {str(name): tensor.numpy() for name, tensor in loaded.items()}
    except Exception as error:  # torch's reader fails on junk in ways of every kind
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MapError(f"it is not a .pt file of tensors alone: {reason[:120]}") from None
    raise MapError("it does not hold a dict of tensors")
