"""The ids of a text's tokens, by the model's own `tokenizer.json`, in this process."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from placement.errors import InputError, OptionError

Ids = npt.NDArray[np.int64]
MOST_CHARS = 1 << 20  # of a prompt; what comes after is not looked at
PACKAGES = ("fastokens", "tokenizers")  # that can read, the fastest first


class Tokens:
    """Reads texts with fastokens where it is installed and knows the kind of tokenizer, else with tokenizers.

    Both give the same ids; fastokens takes a hundredth of the time.

    Args:
        path: The model's `tokenizer.json`.

    Raises:
        InputError: The file cannot be read, or is no tokenizer.
        OptionError: Neither package is installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            content = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read {path}: {error}; give the model's tokenizer.json") from None
        self.package, self._ids = _reader(path, content)

    def ids(self, text: str) -> Ids:
        """The ids of the tokens of a text without special tokens, int64 [T]."""
        text = text[:MOST_CHARS]
        if not text.isascii():  # JSON may hold halves of letters, which no tokenizer takes
            text = text.encode(errors="replace").decode()
        return self._ids(text)


def _reader(path: Path, content: str) -> tuple[str, Callable[[str], Ids]]:
    installed = [name for name in PACKAGES if find_spec(name) is not None]
    if not installed:
        raise OptionError("--tokenizer needs fastokens or tokenizers; pip install 'expert-placement[route]'")
    refused = ""
    for name in installed:
        try:
            return name, _fast(content) if name == "fastokens" else _thorough(content)
        except BaseException as error:  # both packages raise what they like, panics of Rust too
            if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
                raise
            refused = str(error)
    raise InputError(f"{path} is no tokenizer: {refused}; give the model's tokenizer.json")


def _fast(content: str) -> Callable[[str], Ids]:
    from fastokens import Tokenizer

    tokenizer = Tokenizer.from_json_str(content)

    def ids(text: str) -> Ids:
        return np.frombuffer(tokenizer.encode_batch_flat([text])[0], dtype="<u4").astype(np.int64)

    return ids


def _thorough(content: str) -> Callable[[str], Ids]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(content)
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def ids(text: str) -> Ids:
        return np.array(tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids, dtype=np.int64)

    return ids
