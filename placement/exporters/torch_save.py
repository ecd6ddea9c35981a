"""`.pt` files: tensors as torch saves them. torch is loaded only here, and only to write such a file."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.errors import MapError, OptionError
from placement.support.torch_file import StoredTensor, open_document


def torch_bytes(arrays: dict[str, npt.NDArray[Any]]) -> bytes:
    """A dict of tensors as `torch.save` writes it. Raises OptionError where torch is absent."""
    try:
        import torch
    except ImportError:
        raise OptionError(
            "to write a .pt file takes torch, which is not installed; pip install 'expert-placement[runtime]', or name "
            "a file of another ending"
        ) from None
    buffer = io.BytesIO()
    torch.save({name: torch.from_numpy(np.array(array, order="C")) for name, array in arrays.items()}, buffer)
    return buffer.getvalue()


def torch_dict(content: bytes) -> dict[str, Any]:
    """The dict of a `.pt` file, its tensors as arrays, read without torch; objects are refused. Raises MapError."""
    file = io.BytesIO(content)
    try:
        document = open_document(file)
        if isinstance(document, dict):
            return {
                str(name): value.read(file) if isinstance(value, StoredTensor) else value
                for name, value in document.items()
            }
    except ValueError as error:
        raise MapError(f"it is not a .pt file of tensors alone: {error}") from None
    raise MapError(f"it holds a {type(document).__name__}; a dict of tensors is needed")
