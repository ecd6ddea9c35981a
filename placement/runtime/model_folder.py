"""The small files of a Hugging Face folder: what its model is and how it generates, and errors of one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from placement.core.huggingface import library
from placement.errors import InputError, PlacementError

CONFIG, GENERATION = "config.json", "generation_config.json"
_NUMBERS = ("max_length", "max_new_tokens", "repetition_penalty", "temperature", "top_k", "top_p")


def architecture(transformers: Any, names: Any, file: Path) -> Any:
    """The class of the model that `file` names first. Raises InputError where transformers has none of that name."""
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str):
        raise InputError(f"{file} has architectures {names!r}; a list with the name of the model's class is needed")
    with errors_as_one_line(f"{library()} cannot import {name}, which {file} names"):
        known = getattr(transformers, name, None)
    if not (isinstance(known, type) and issubclass(known, transformers.PreTrainedModel)):
        raise InputError(f"{file} names the architecture {name}, which is no model that {library()} has")
    return known


def generation_config(transformers: Any, folder: Path) -> Any:
    """How the checkpoint says to generate; transformers takes text for a number without a word."""
    file = folder / GENERATION
    told = json_object(file)
    for name in _NUMBERS:
        if not isinstance(told.get(name), int | float | None):
            raise InputError(f"{file} has {name} {told[name]!r}; a number is needed, or null")
    with errors_as_one_line(f"{file} cannot be read by {library()}"):
        return transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)


def json_object(file: Path) -> dict[str, Any]:
    """What a file has. Raises InputError for one that cannot be read, or has anything but an object."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read: {one_line(error)}; fetch it again") from None
    if not isinstance(found, dict):
        raise InputError(f"{file} cannot be read: a JSON object is needed; fetch it again")
    return found


@contextmanager
def errors_as_one_line(what: str) -> Iterator[None]:
    """Around calls of transformers: its code for each model takes values of files as they are, and raises anything."""
    try:
        yield
    except PlacementError:
        raise
    except Exception as error:
        raise InputError(f"{what}: {type(error).__name__}: {one_line(error)}") from None


def one_line(error: Exception) -> str:
    """The words of an error of another library, without breaks of lines."""
    return " ".join(str(error).split())[:300]
